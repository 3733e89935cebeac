"""The scope-aware proxy: one HAProxy in front of all services of an instance."""

#: The port at which a proxy listens by default.
PORT = 8888
