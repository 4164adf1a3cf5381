"""Who people are and what they may do; every door asks here."""
