"""The scope-aware proxy: one HAProxy in front of all services of an instance."""
