"""Questions and changes in the domain's words; none of them commits."""
