"""Parts of the bridge that a test plays itself."""
