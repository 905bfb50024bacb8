"""Loading, merging and checking configs. The config classes live beside what they configure."""
