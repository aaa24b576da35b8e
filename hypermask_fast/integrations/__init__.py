"""Learners inside other libraries, none of which is needed to import this package."""
