"""Files of a learner, whole or in the parts of several processes."""
