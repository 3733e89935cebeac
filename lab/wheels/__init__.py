"""What the wheels stack runs on a host: an OpenStack from PyPI under supervisor.

The orchestrator starts it over ssh, ``python -m lab.wheels``, with a specification on
standard input (:mod:`~lab.wheels.spec`); it knows nothing of providers or of ssh.
"""
