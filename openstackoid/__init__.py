"""OpenStackoïd: scopes that let independent OpenStacks collaborate."""
