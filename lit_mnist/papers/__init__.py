"""One file per paper: its experiments, its claims, its figures; and what runs them."""
