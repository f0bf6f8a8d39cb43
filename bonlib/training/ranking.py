"""Rankings of a gallery for each query: exact in float64, ties told apart, found through float32 where that is sure."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from bonlib.core.checks import centred

_TIED = 2.0**-45  # of the squared norms: squared distances that differ by less are taken as equal, whatever rounds them
_SPARE = 16  # candidates beyond those that are asked for


class Hits(NamedTuple):
    """What stands at each place of each query's ranking; all ``(queries, places)``, nearest first.

    Places of one group are tied: any order of its members is as good as another. Without ties each place is a group of
    its own, and ``members`` is 1, ``matches`` 0 or 1.
    """

    matches: Tensor  # samples of the query's class in the place's group
    members: Tensor  # samples in the place's group
    matches_before: Tensor  # samples of the query's class in nearer groups
    members_before: Tensor  # samples in nearer groups

    @classmethod
    def of(cls, hits: Tensor) -> "Hits":
        """Of a ranking without ties: whether each place holds the query's class, ``(queries, places)`` bool.

        Example:
            >>> Hits.of(torch.tensor([[True, False, True]])).matches_before.tolist()
            [[0.0, 1.0, 1.0]]
        """
        matches = hits.double()
        members = torch.ones_like(matches)
        return cls(matches, members, matches.cumsum(1) - matches, members.cumsum(1) - members)

    def chance(self) -> Tensor:
        """Probability that a place holds the query's class."""
        return self.matches / self.members

    def precision(self) -> Tensor:
        """Mean precision at a place over the orders in which it holds the query's class."""
        within = torch.arange(1, self.members.shape[1] + 1, device=self.members.device) - 1 - self.members_before
        others = within * (self.matches - 1).clamp_min(0) / (self.members - 1).clamp_min(1)
        return (self.matches_before + 1 + others) / (self.members_before + within + 1)


class Points(NamedTuple):
    """Centred embeddings in float64, and their squared norms."""

    rows: Tensor  # (num, dim)
    norms: Tensor  # (num,)

    @classmethod
    def of(cls, embeddings: Tensor) -> "Points":
        """Around the median, which a few far vectors do not move."""
        rows = centred(embeddings)
        return cls(rows, rows.square().sum(dim=1))

    def split(self, at: int) -> tuple["Points", "Points"]:
        """The first ``at`` points, and the others."""
        return Points(self.rows[:at], self.norms[:at]), Points(self.rows[at:], self.norms[at:])


def nearest_hits(
    points: Points, labels: Tensor, queries: Tensor, depth: int, chunk: int
) -> Iterator[tuple[Tensor, Hits]]:
    """The ``depth`` nearest of each query among all other points, part by part.

    Candidates come from a search in float32, a third of the price, and are ranked in float64. A query goes without the
    short cut where a sample that is no candidate might, by the bound of float32's rounding, be as near as the last
    place: with ties, and in a collapsed cloud.

    Args:
        points: of gallery and queries.
        labels: ``(num,)`` class of each point.
        queries: ``(queries,)`` indices of points.
        depth: places of the ranking, fewer than the points.
        chunk: queries at once.
    """
    short = Points(points.rows.float(), points.norms.float())
    most = min(depth + _SPARE, len(points.rows) - 1)
    rounding = (points.rows.shape[1] + 8) * 2.0**-23  # of the squared norms, see Higham, "Accuracy and stability", 3.1
    largest = points.norms.max()
    for part, distances in squared_distances(short, short, queries, chunk):
        distances[torch.arange(len(part), device=part.device), part] = torch.inf
        bound, nearest = distances.topk(most, dim=1, largest=False)  # (part, most)
        # Few queries at once, so that their candidates' rows take no more memory than the distances.
        few = max(len(part) * len(points.rows) // (most * points.rows.shape[1]), 1)
        apart = torch.cat([
            torch.bmm(points.rows[found], points.rows[queries, :, None]).squeeze(2)
            for found, queries in zip(nearest.split(few), part.split(few), strict=True)
        ])  # fmt: skip
        exact = points.norms[part, None] + points.norms[nearest] - 2 * apart  # (part, most)
        hits, limit = ranked(
            exact, labels[nearest] == labels[part, None], depth, points.norms[part], points.norms[nearest]
        )
        sure = limit < bound[:, -1].double() - rounding * (points.norms[part] + largest)
        if most == len(points.rows) - 1:
            sure = torch.ones_like(sure)
        elif _products_are_short():
            sure = torch.zeros_like(sure)
        for few, whole in squared_distances(points, points, part[~sure], chunk) if not sure.all() else ():
            whole[torch.arange(len(few), device=few.device), few] = torch.inf
            same = labels[few, None] == labels
            found, _ = ranked(whole, same, depth, points.norms[few], points.norms.expand_as(whole))
            for values, right in zip(hits, found, strict=True):
                values[~sure] = right
        yield part, hits


def _products_are_short() -> bool:
    """Whether torch was told to take products of float32 with fewer digits, by the old setting or by the new one."""
    try:
        return torch.get_float32_matmul_precision() != "highest"
    except RuntimeError:  # it refuses to tell where somebody has set the new one
        return True


def squared_distances(queries: Points, gallery: Points, chosen: Tensor, chunk: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Chosen queries part by part, each with its squared distances ``(part, gallery)``, in one buffer."""
    # Fresh memory for each part would take as long as the search itself.
    buffer = gallery.rows.new_empty(min(chunk, len(chosen)), len(gallery.rows))
    for part in chosen.split(chunk):
        out = buffer[: len(part)]
        torch.addmm(gallery.norms, queries.rows[part], gallery.rows.T, alpha=-2, out=out)
        yield part, out.add_(queries.norms[part, None])


def ranked(
    distances: Tensor, same: Tensor, depth: int, query_norms: Tensor, gallery_norms: Tensor
) -> tuple[Hits, Tensor]:
    """The ``depth`` nearest places of each query, with those that are tied in one group.

    Args:
        distances: ``(queries, gallery)`` squared; infinite where a sample does not count.
        same: ``(queries, gallery)`` whether a sample is of the query's class.
        depth: how many places are wanted.
        query_norms: ``(queries,)`` squared norms of the centred queries.
        gallery_norms: ``(queries, gallery)`` those of the gallery.

    Returns:
        The hits, and ``(queries,)`` the squared distance up to which a sample is tied with the last place.
    """
    values, nearest = distances.topk(depth, dim=1, largest=False)  # (queries, depth), nearest first
    hits = same.gather(1, nearest).double()
    size = gallery_norms.gather(1, nearest)
    slack = _TIED * (query_norms[:, None] + torch.maximum(size[:, 1:], size[:, :-1]))
    begins = torch.ones_like(hits, dtype=torch.bool)  # whether a place is the first of its group
    begins[:, 1:] = ~(values[:, 1:] - values[:, :-1] <= slack)  # infinite ones are no ties: their difference is NaN
    places = torch.arange(depth, device=values.device).expand_as(nearest)
    first = torch.where(begins, places, 0).cummax(dim=1).values  # of the place's group
    ends = torch.ones_like(begins)
    ends[:, :-1] = begins[:, 1:]
    last = torch.where(ends, places, depth).flip(1).cummin(dim=1).values.flip(1)
    found = torch.cat([hits.new_zeros(len(hits), 1), hits.cumsum(dim=1)], dim=1)  # matches before each place
    members, members_before = (last - first + 1).double(), first.double()
    matches_before = found.gather(1, first)
    matches = found.gather(1, last + 1) - matches_before
    limit = values[:, -1:] + _TIED * (query_norms[:, None] + size[:, -1:])
    # The last group may go on beyond the places that were asked for.
    if depth < distances.shape[1]:
        beyond = distances <= limit
        here = first == first[:, -1:]
        count, right = beyond.sum(dim=1, keepdim=True), (beyond & same).sum(dim=1, keepdim=True)
        members = torch.where(here, torch.maximum(members, count - members_before), members)
        matches = torch.where(here, torch.maximum(matches, right - matches_before), matches)
    return Hits(matches, members, matches_before, members_before), limit.squeeze(1)
