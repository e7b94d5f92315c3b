"""One script for each stage of dvc.yaml: parameters and inputs in, one call, one write."""
