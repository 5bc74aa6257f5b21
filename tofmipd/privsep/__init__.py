"""Who may do what: what stands behind the gate, and in which process."""
