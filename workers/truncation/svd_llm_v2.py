"""Truncation as SVD-LLM V2 states it (arXiv 2503.12340, Theorem 3.1): two SVDs, no Cholesky."""

from jaxtyping import Float
from torch import Tensor

from workers.truncation.basis import Basis, positive_eigh, thin_svd


def svd_llm_v2(weight: Float[Tensor, "m n"], gram: Float[Tensor, "n n"]) -> Basis:
    """W' = U_k S_k V_k^T L^-1/2 Q^T with C = Q L Q^T and W Q L^1/2 = U S V^T, in float64.

    `weight` (m, n), `gram` (n, n) = C, whose SVD is its eigendecomposition. Where L ~ 0 the
    pseudo-inverse is taken and recorded. Line 7 of the paper's Algorithm 2 is misprinted; this
    follows the theorem.
    """
    weight, gram = weight.double(), gram.double()
    values, vectors = positive_eigh(gram)
    empty = gram.shape[0] - values.shape[0]
    root = values.sqrt()
    u, s, vt = thin_svd(weight @ (vectors * root))
    scale = s.sqrt()
    right = scale[:, None] * (vt / root) @ vectors.T
    note = f"at least {empty} of {len(gram)} directions of X^T X are empty: pseudo-inverse used"
    return Basis(s.square(), u * scale, right, "none", (note,) if empty else ())
