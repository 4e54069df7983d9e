"""Stands here so that every folder of tests can import `golden` and `tiny`: pytest puts its folder on the path."""
