"""How a matrix is cut at a rank: one file per method, one `Basis` from all of them."""
