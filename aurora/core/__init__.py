"""What every stage stands on: errors, params, files, manifests, locks."""
