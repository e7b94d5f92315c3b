"""Where data comes from: addresses and the sources section of params.yaml."""
