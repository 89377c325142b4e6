"""Programs that flood a bridge and come back when they are sent away."""
