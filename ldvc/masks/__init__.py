"""Label maps on disk and on screen."""
