"""Removal of whole neurons of an MLP, the others making up for them (this project's own method).

The neurons are h (q,) in y = W h, W (m, q), each made by a row of the matrices before it. Those of
a set S are kept, and what W reads of the others is foretold from them: W' = W C[:, S] C[S, S]^-1,
with C = E[h h^T], minimises ||G_s^1/2 (W - W') C^1/2||_F, the objective of `two_sided`, over all W'
that read S alone. It is an interpolative decomposition of h whose coefficients W absorbs, so the
rows that made the others go, too. MoDeGPT (arXiv 2408.09632, algorithm 1) cuts an MLP in this way,
with neurons chosen by ridge leverage scores. Here each step removes the one whose loss is least, as
the optimal brain surgeon does (Hassibi and Stork, NIPS 1992).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from workers.truncation.two_sided import Metric, root_of

_BLOCK = 32  # neurons that are removed before the matrices are changed


class Removal(NamedTuple):
    """Neurons in the order in which they are best removed, and the loss once the first 1, 2, ...
    of them are gone, in the unit of `two_sided`.
    """

    order: Int64[Tensor, " r"]
    losses: Float64[Tensor, " r"]
    fallbacks: tuple[str, ...] = ()


class Firing(NamedTuple):
    """The removal of neurons as a problem: what is read of them, F (p, q) with F^T F = W^T G_s W,
    and `moment`, C (q, q), both in float64.
    """

    read: Float64[Tensor, "p q"]
    moment: Float64[Tensor, "q q"]
    fallbacks: tuple[str, ...] = ()

    def removal(self) -> Removal:
        """Order the neurons.

        With P = C[S, S]^-1 and F' what reads S, removing j adds |F'[:, j]|^2 / P[j, j] to the loss,
        and takes an outer product off each of F' and P. Neurons that never fire go first. If C is
        singular without them, no other can be removed; if it is nearly so, none from the first on
        whose loss is no number. Both are recorded.
        """
        fires = self.moment.diagonal() > 0
        left, order = fires.nonzero().flatten(), [(~fires).nonzero().flatten()]
        losses, fallbacks = [self.moment.new_zeros(len(order[0]))], self.fallbacks
        factor, failed = torch.linalg.cholesky_ex(self.moment[left[:, None], left])
        if int(failed):
            fallbacks = (*fallbacks, "moment of the neurons not positive definite: they all stay")
            left, factor = left[:0], factor[:0, :0]
        precision, read = torch.cholesky_inverse(factor), self.read[:, left]
        while len(left) > 1:
            gone, costs, read, precision = _remove(read, precision, min(_BLOCK, len(left) - 1))
            sound = int(costs.isfinite().long().cumprod(0).sum())
            order.append(left[gone[:sound]])
            losses.append(costs[:sound])
            if sound < len(costs):
                note = f"moment of the neurons nearly singular: the last {len(left) - sound} stay"
                fallbacks = (*fallbacks, note)
                break
            left = left[others(gone, len(left))]
        return Removal(torch.cat(order).cpu(), torch.cat(losses).cumsum(0).cpu(), fallbacks)

    def compensated(
        self, weight: Float[Tensor, "m q"], kept: Int64[Tensor, " k"]
    ) -> Float64[Tensor, "m k"]:
        """Return W C[:, S] C[S, S]^-1 (m, k) of W (m, q), which reads the kept neurons alone; those
        that never fire are read as before.

        Raises LinAlgError if the others depend on each other.
        """
        fires = self.moment.diagonal()[kept] > 0
        firing, found = kept[fires], weight.double()[:, kept]
        factor = torch.linalg.cholesky(self.moment[firing[:, None], firing])
        found[:, fires] = torch.cholesky_solve(self.moment[firing] @ weight.double().T, factor).T
        return found

    def loss(self, kept: Int64[Tensor, " k"]) -> float:
        """Return tr(G_s (W - W') C (W - W')^T) if some are kept, from W' and not from the order.

        Raises as `compensated` does.
        """
        error = self.read.clone()
        error[:, kept] -= self.compensated(self.read, kept)
        return float(((error @ self.moment) * error).sum())

    def energy(self) -> float:
        """Return the loss if all are removed."""
        return float(((self.read @ self.moment) * self.read).sum())


def firing(weight: Float[Tensor, "m q"], moment: Float64[Tensor, "q q"], metric: Metric) -> Firing:
    """Return the problem of the neurons that W (m, q) reads, weighed as W itself is."""
    root, fallbacks = root_of(metric.matrix)
    read = root.T if metric.on_input else root.T @ weight.double()
    return Firing(read, moment, fallbacks)


def _remove(
    read: Float64[Tensor, "p q"], precision: Float64[Tensor, "q q"], count: int
) -> tuple[Int64[Tensor, " c"], Float64[Tensor, " c"], Tensor, Tensor]:
    """Return the next neurons to remove, what each adds to the loss, and what is left of F and P.

    Both are changed once, after the last: until then they are F - V U^T and P - U U^T, of which
    each step needs a column and all norms.
    """
    u, v = read.new_zeros(read.shape[1], count), read.new_zeros(len(read), count)
    energies, variances = read.square().sum(0), precision.diagonal().clone()
    gone, costs = list[Tensor](), list[Tensor]()
    for step in range(count):
        prices = energies / variances
        at = prices.argmin()
        gone.append(at)
        costs.append(torch.where(variances[at] > 0, prices[at], torch.nan))
        row = precision[:, at] - u @ u[at]
        scale = row[at].rsqrt()
        mine, column = row * scale, (read[:, at] - v @ u[at]) * scale
        dots = read.T @ column - u @ (v.T @ column)
        energies += mine * (mine * column.square().sum() - 2 * dots)
        variances -= mine.square()
        energies[at], variances[at] = torch.inf, 1.0  # it is not removed again
        u[:, step], v[:, step] = mine, column
    chosen = torch.stack(gone)
    rest = others(chosen, read.shape[1])
    left = precision[rest[:, None], rest].addmm_(u[rest], u[rest].T, alpha=-1)
    return chosen, torch.stack(costs), read[:, rest].addmm_(v, u[rest].T, alpha=-1), left


def others(gone: Int64[Tensor, " c"], count: int) -> Int64[Tensor, " r"]:
    """Return those of so many neurons that are not gone, in ascending order."""
    stays = torch.ones(count, dtype=torch.bool, device=gone.device)
    stays[gone] = False
    return stays.nonzero().flatten()
