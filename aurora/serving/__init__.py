"""A model to talk to: found by its name, loaded, asked, and served over HTTP."""
