"""How fast a model will be, from numbers: its work, a device's profile, and what the lane engine makes of both."""
