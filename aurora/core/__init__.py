"""What every stage uses: errors, params, files, manifests, locks."""
