"""Every knob of params.yaml: one frozen model a section, a unit under each field, unknown keys refused."""
