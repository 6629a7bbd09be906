"""What a translation is worth: arrays in, numbers out; every number with its n and interval."""
