"""The lab: several independent OpenStack instances on the machines at hand."""
