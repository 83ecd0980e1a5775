"""Sets that no file of this project's form stands for: a user's own, and several joined to one."""
