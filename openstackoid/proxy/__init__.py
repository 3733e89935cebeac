"""The scope-aware proxy: one HAProxy in front of all the services of an instance."""
