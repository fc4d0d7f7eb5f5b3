"""The model and everything that a Hub folder ships: siblings that import each other by one dot, and no other room."""
