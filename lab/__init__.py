"""The lab: several independent OpenStack instances on one machine or several."""
