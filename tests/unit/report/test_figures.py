"""The figures of a report: what they count, draw and say."""

from xml.etree import ElementTree

import pytest

from pipeline.report.figures import Matrices, ranks, short_kinds
from pipeline.report.losses import layers, losses
from pipeline.report.recovery import recovery
from pipeline.report.wording import count, optimism
from tests import reports


def test_a_type_is_named_shortly_with_the_number_of_its_part() -> None:
    kinds = ["attn.c_attn.0", "attn.c_attn.1", "attn.c_proj", "mlp.c_proj", "ffn.2", "up"]
    found = ["c_attn.0", "c_attn.1", "attn.c_proj", "mlp.c_proj", "ffn.2", "up"]
    assert list(short_kinds(kinds).values()) == found


@pytest.mark.parametrize(
    ("measured", "said"),
    [(0.149, ""), (0.2, ": the prediction is optimistic; more gradient tokens")],
)
def test_an_optimistic_prediction_is_called_one(measured: float, said: str) -> None:
    assert said in optimism(0.1, measured)
    assert bool(optimism(0.1, measured)) == bool(said)
    assert not optimism(0.001, 0.01)  # which is noise


@pytest.mark.parametrize(
    ("number", "said"), [(0, "0 matrices"), (1, "1 matrix"), (1024, "1,024 matrices")]
)
def test_one_thing_is_counted_as_one(number: int, said: str) -> None:
    assert count(number, "matrix", "matrices") == said
    assert count(number, "window") == said.replace("matrix", "window").replace(
        "matrices", "windows"
    )


def test_the_head_is_shown_with_the_last_layer() -> None:
    rows = reports.matrices(3)
    head = rows[0].model_copy(update={"name": "lm_head"})
    matrices = Matrices([*rows, head])
    assert matrices.layers == Matrices(rows).layers
    [(layer, found)] = matrices.of("lm_head")
    assert (layer, found) == (matrices.layers[-1], head)
    assert (
        matrices.label(next(place for place in matrices.at if place.kind == "lm_head")) == "lm_head"
    )


def test_the_heat_map_has_a_cell_for_every_matrix() -> None:
    matrices = Matrices(reports.matrices(5))
    [drawing] = ranks(matrices).drawings
    cells = [g for g in ElementTree.fromstring(drawing) if g.attrib.get("class") == "cell"]
    assert len(cells) == 5 * 7
    tips = [cell.findtext("title") for cell in cells]
    assert tips[0] == "layer 0, q_proj: rank 8 of 48, pivoted, 16.7\xa0% of full"
    assert tips[6] == "layer 0, down_proj: dense, dense, 100.0\xa0% of full"
    assert "1 of 35 matrices stayed dense" in ranks(matrices).gist


def test_neurons_are_counted_as_such() -> None:
    rows = list(reports.matrices(2))
    for at, encoding in ((4, "pruned-rows"), (5, "pruned-rows"), (6, "pruned-columns")):
        shape = (96, 48) if encoding == "pruned-rows" else (48, 96)
        lost = {"encoding": encoding, "rank": 72, "shape": shape}
        rows[at] = rows[at].model_copy(update=lost)
    matrices = Matrices(rows)
    figure = ranks(matrices)
    cells = ElementTree.fromstring(figure.drawings[0]).iter()
    tips = [g.findtext("title") for g in cells if g.attrib.get("class") == "cell"]
    assert "layer 0, gate_proj: neurons 72 of 96, pruned-rows, 75.0\xa0% of full" in tips
    assert "3 lost neurons in the place of ranks" in figure.gist
    assert figure.table.rows[0][-3:] == ("72 neurons",) * 3
    found = losses(matrices, reports.compression(tuple(rows)), None)
    cut = sum(row.rank is not None for row in rows)
    assert f"of {cut - 2} cut matrices" in found.gist  # what writes neurons has no loss of its own


def test_the_numbers_of_the_gist_are_those_of_the_rows() -> None:
    rows = reports.matrices(2)
    matrices, done = Matrices(rows), reports.compression(rows)
    assert layers(matrices, done).gist == "Layer 1 costs most: 0.00140 of 0.00200 nats, 70\xa0%."
    gist = losses(matrices, done, reports.evaluation()).gist
    assert "13 cut matrices differs from the predicted one by at most 1.0\xa0%" in gist
    assert "0.00200 nats a token were predicted, and 0.414 measured on 16 windows: the" in gist


def test_a_block_whose_name_begins_another_counts_alone() -> None:
    rows = [
        row.model_copy(update={"name": row.name.replace("mlp", "self_attn_2")})
        for row in reports.matrices(2)
    ]
    found = layers(Matrices(rows), reports.compression(tuple(rows))).table
    assert found.head == ("layer", "self_attn", "self_attn_2", "all")
    assert found.rows[1] == ("1", "8.00e−4", "6.00e−4", "0.00140")


def test_a_recovery_without_a_finite_loss_has_its_figure() -> None:
    found = reports.recovery(None, None).model_copy(update={"best": 0})
    assert "on held-out text: – before, – after 0 of 1 steps" in recovery(found).gist


def test_a_refinement_alone_has_no_steps_and_counts_layers_that_are_cut() -> None:
    untouched = {"steps": 0, "refined": (None, 0.5)}
    found = reports.recovery(3.0, 2.0, sequence_length=64).model_copy(update=untouched)
    gist = recovery(found).gist
    assert "3.00 before, 2.00 after, in 1.0" in gist
    assert "layers alone were brought to 50" in gist
    assert gist.endswith("Factors were trained: those of each layer alone, 3 times on 192 tokens.")
