"""What every conditioning scheme keeps: nulls for what is not known, its own scale, files, and that the condition is heard."""

from dataclasses import replace
from typing import get_args

import pytest
import torch
from safetensors.torch import load_file
from small_backbones import NAMES, PLATES, build, call, configured, noisy, table, without_gradient

from cellbridge import assembly
from cellbridge.adapters import lora
from cellbridge.config import ConditioningConfig, NetworkConfig
from cellbridge.errors import ConfigError
from cellbridge.networks.condition_monitor import MONITOR, condition_over_time, condition_warning
from cellbridge.networks.condition_table import ConditionTable
from cellbridge.networks.condition_tokens import TokenEncoder, Tokens
from cellbridge.networks.conditioning import Projected, condition_rows
from cellbridge.networks.stored import load_weights, save_conditioning, stock
from cellbridge.networks.unet import save_base

ALL = ("compound", "dose", "plate")
SCHEMES = {
    "one-hot": ("unet", "one_hot", {}),
    "added": ("unet", "added", {}),
    "added, fingerprint": ("unet", "added", {"compound": "fingerprint"}),
    "attended, then projected": ("unet", "attend_then_project", {"tokens": (*ALL, "time")}),
    "late": ("unet", "late", {}),
    "late, characters": ("unet", "late", {"compound": "characters"}),
    "concatenated": ("cross_attention_unet", "concatenated", {}),
    "cross-attention": ("cross_attention_unet", "cross_attention", {"tokens": (*ALL, "time")}),
    "cross-attention, characters": ("cross_attention_unet", "cross_attention", {"compound": "characters"}),
    "cross-attention, fingerprint": ("dit", "cross_attention", {"compound": "fingerprint"}),
}


def test_every_scheme_token_and_encoder_of_the_configuration_is_here():
    chosen = [configured(backbone, scheme, **{"tokens": ALL, **own}) for backbone, scheme, own in SCHEMES.values()]
    found = [config.conditioning for config in chosen]
    fields = ConditioningConfig.model_fields
    assert {one.scheme for one in found} == set(get_args(fields["scheme"].annotation))
    assert {one.compound for one in found} == set(get_args(fields["compound"].annotation))
    assert {token for one in found for token in one.parts} == {"compound", "dose", "plate", "time"}
    assert {config.backbone for config in chosen} == set(assembly.BACKBONES)


READERS = [name for name in SCHEMES if "characters" in name or "fingerprint" in name]


def network_of(name: str, **changed):
    backbone, scheme, own = SCHEMES[name]
    return build(configured(backbone, scheme, **{"tokens": ALL, **own, **changed}))


@pytest.fixture(params=SCHEMES)
def network(request):
    return network_of(request.param)


def labels_everywhere() -> torch.Tensor:
    known = table()
    return torch.tensor([known.label(row, plate=plate) for row in range(len(NAMES)) for plate in (None, *PLATES)])


def test_every_parameter_receives_a_gradient(network):
    x_t, t, _ = noisy(18)
    assert without_gradient(network, x_t, t, labels_everywhere()) == []


def test_an_output_does_not_depend_on_its_batch_nor_changes_the_random_state(network):
    x_t, t, labels = *noisy(18)[:2], labels_everywhere()
    state = torch.get_rng_state()
    with torch.no_grad():
        together = call(network, x_t, t, labels)
        alone = torch.cat([call(network, *(part[i : i + 3] for part in (x_t, t, labels))) for i in range(0, 18, 3)])
    assert torch.allclose(together, alone, rtol=1e-5, atol=1e-5)
    assert torch.equal(torch.get_rng_state(), state)


def test_half_precision_goes_through(network):
    x_t, t, labels = *noisy(18)[:2], labels_everywhere()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = call(network, x_t, t, labels)
    assert torch.allclose(output.float(), call(network, x_t, t, labels), atol=0.2)


def test_compound_dose_and_plate_are_told_apart_from_the_first(network):
    known = table()
    rows = [known.label(2), known.label(3), known.label(4), known.label(2, plate="P1"), known.label(2, plate="P2"), 0]
    told = network.conditioner(torch.tensor(rows), torch.zeros(len(rows)))
    vectors = (told.values * told.keep[..., None]).flatten(1) if isinstance(told, Tokens) else told
    distances = torch.pdist(vectors.detach())
    assert distances.min() > 0


def test_what_is_unknown_is_the_null(network):
    known = table()
    assert known.row("water") == known.row("taxol@7") == 0
    assert known.label(2, plate="P9") == 2
    x_t, t, _ = noisy(1)
    unknown = known.label(known.row("water"), plate="P9")
    assert torch.equal(call(network, x_t, t, torch.tensor([unknown])), call(network, x_t, t, torch.tensor([0])))


def test_the_null_is_the_learned_one_in_every_token(network):
    encoder = network.conditioner.tokens
    tokens = encoder(torch.tensor([0]), torch.zeros(1))
    values = tokens.values[tokens.keep]
    expected = torch.stack([encoder.nulls[kind] for kind in ALL])
    assert torch.equal(values[-3:], expected)
    assert len(values) == 3 + ("time" in encoder.kinds)


def test_dropout_hides_each_token_apart_and_only_in_training(network):
    encoder = network.conditioner.tokens
    encoder.dropout = 0.2
    labels = torch.full((4000,), table().label(2, plate="P1"))
    times = torch.zeros(4000)
    assert not _hidden(encoder.eval(), labels, times).any()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hidden = _hidden(encoder.train(), labels, times).float()
    assert hidden.mean(0) == pytest.approx([0.2] * 3, abs=0.03)  # 4.7 standard errors
    assert torch.corrcoef(hidden.T)[~torch.eye(3, dtype=torch.bool)].abs().max() < 0.08


def _hidden(encoder: TokenEncoder, labels: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Return which of compound, dose and plate stand as their nulls: (batch, 3)."""
    tokens = encoder(labels, t)
    at = [int("time" in encoder.kinds), -2, -1]
    return torch.stack(
        [(tokens.values[:, i] == encoder.nulls[kind]).all(1) for i, kind in zip(at, ALL, strict=True)], 1
    )


def test_the_condition_is_heard_after_a_step_of_training(network):
    x_t, t, _ = noisy(2)
    rows = torch.tensor([1, 4])
    optimiser = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    call(network, x_t, t, rows).square().mean().backward()
    optimiser.step()
    with torch.no_grad():
        effect = call(network, x_t, t, rows) - call(network, x_t, t, rows.flip(0))
    assert effect.abs().max() > 1e-5


@pytest.mark.parametrize("name", SCHEMES)
def test_a_saved_network_loads_bit_for_bit(name, tmp_path):
    network, (x_t, t, _), labels = network_of(name), noisy(18), labels_everywhere()
    save_base(stock(network), tmp_path / "model", kind="cosine", steps=1000, prediction="v")
    save_conditioning(network, tmp_path / "model")
    again = network_of(name)
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.zero_()
        load_weights(again, tmp_path / "model")
        assert torch.equal(call(again, x_t, t, labels), call(network, x_t, t, labels))
    rows = tmp_path / "model" / "conditioning" / "rows.safetensors"
    assert rows.is_file() == ("time" not in network.conditioner.tokens.kinds)
    assert not rows.is_file() or all(len(value) == len(NAMES) for value in load_file(rows).values())


@pytest.mark.parametrize("name", [name for name in SCHEMES if not name.startswith("cross-attention")])
@pytest.mark.parametrize("std", [0.02, 0.5])
def test_a_vector_starts_at_the_spread_that_is_set(name, std):
    network = network_of(name, embedding_std=std, width=64)
    vectors = network.conditioner(labels_everywhere(), torch.zeros(18))
    assert 0.5 * std < vectors.std().item() < 1.5 * std


def test_an_adapter_at_its_start_is_the_base(network):
    x_t, t, labels = *noisy(18)[:2], labels_everywhere()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        expected = call(network, x_t, t, labels)
        lora.copy_row(network, source=1, target=5)
        changed = labels % len(NAMES) == 5
        adapted = lora.attach(network, rank=2).eval()
        assert torch.allclose(call(adapted, x_t, t, labels)[~changed], expected[~changed], rtol=1e-5, atol=1e-6)
    assert any("class_embedding" in name for name in lora.trainable(adapted))


@pytest.mark.parametrize("name", READERS)
def test_a_row_that_is_appended_is_the_row_it_would_have_been(name):
    network, (x_t, t, _) = network_of(name), noisy(4)
    labels = torch.tensor([0, 2, 4, 6])
    before = call(network, x_t[:3], t[:3], labels[:3])
    longer = table().appended("cyclohexamide@50")
    network.conditioner.tokens.describe(longer)
    after = call(network, x_t, t, labels)
    assert torch.allclose(after[:3], before, rtol=1e-5, atol=1e-6)
    other = network_of(name)
    other.conditioner.tokens.describe(table().appended("colchicine@50"))
    same = call(other, x_t, t, labels)
    assert torch.allclose(same[:3], before, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(same[3], after[3], rtol=1e-5, atol=1e-6)


def test_rows_stay_what_they_were_when_another_dose_is_appended(network):
    (x_t, t, _), labels = noisy(len(NAMES)), torch.arange(len(NAMES))
    before = call(network, x_t, t, labels)
    network.conditioner.tokens.describe(table().appended(f"{NAMES[2].partition('@')[0]}@123"))
    assert torch.allclose(call(network, x_t, t, labels), before, rtol=1e-5, atol=1e-6)


def test_one_compound_has_one_row_at_all_doses_where_the_dose_is_told_apart():
    apart = TokenEncoder(table(), tokens=("compound", "dose"), width=8)
    whole = TokenEncoder(table(), tokens=("compound",), width=8)
    assert apart.compound_rows.tolist() == [0, 1, 2, 2, 4, 5]
    assert whole.compound_rows.tolist() == [0, 1, 2, 3, 4, 5]


def test_a_condition_without_a_dose_has_the_null_dose():
    encoder = TokenEncoder(table(), tokens=("compound", "dose"), width=8).eval()
    values = encoder(torch.tensor([1, 2]), torch.zeros(2)).values
    assert torch.equal(values[0, 1], encoder.nulls["dose"])
    assert not torch.equal(values[1, 1], encoder.nulls["dose"])


def test_a_one_hot_vector_through_a_matrix_is_the_row_that_stands_for_it():
    encoder = TokenEncoder(table(), tokens=("compound",), width=8, dropout=0.0).eval()
    scheme = Projected(8, 4, std=1.0)
    rows = torch.arange(1, len(NAMES))
    hot = torch.nn.functional.one_hot(rows, len(NAMES)).float()
    hidden = torch.nn.functional.silu(hot @ encoder.class_embedding.weight + scheme.bias)
    expected = scheme.outward(hidden)
    assert torch.allclose(scheme(encoder(rows, torch.zeros(len(rows)))), expected, atol=1e-6)


def test_texts_that_share_their_parts_have_near_fingerprints():
    names = ["", "cyclohexamide", "cycloheximide", "taxol"]
    one, near, far = torch.nn.functional.normalize(ConditionTable.of(names).fingerprints()[1:], dim=1)
    assert one @ near > 0.6
    assert one @ far < 0.3


def test_what_fills_a_text_up_is_not_read():
    """Appending a longer text widens every row of the table."""
    encoder = TokenEncoder(table(), tokens=("compound",), compound="characters", width=8).eval()
    short = encoder(torch.tensor([2]), torch.zeros(1))
    encoder.describe(table().appended("a compound of a long name"))
    long = encoder(torch.tensor([2]), torch.zeros(1))
    assert long.keep.sum() == short.keep.sum() == len("taxol")
    assert torch.allclose(long.values[long.keep], short.values[short.keep], atol=1e-6)


def test_a_text_that_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match=r'"nocodazole@0\.3" has 10 bytes.*text_length'):
        table().characters(longest=9)


def test_smiles_are_read_where_they_are_given_and_asked_for_where_not():
    smiles = {"DMSO": "CS(C)=O", "taxol": "CC1=C2"}
    assert ConditionTable.of(["", "DMSO", "taxol@1", "<adapter>"], smiles=smiles).texts == (
        "",
        "CS(C)=O",
        "CC1=C2",
        "<adapter>",
    )
    with pytest.raises(ConfigError, match='no entry for the compound "taxl"'):
        ConditionTable.of(["", "taxl@1"], smiles=smiles)


def test_the_monitor_is_the_ratio_of_the_norms_that_are_added():
    network = build(configured("unet", "added"))
    _, t, labels = noisy()
    time = network.time_embedding(network.time_proj(t))
    expected = network.class_embedding.weight[labels].norm(dim=1) / time.norm(dim=1)
    assert torch.allclose(condition_over_time(network, t, labels), expected.detach(), rtol=1e-5)


@pytest.mark.parametrize("name", SCHEMES)
def test_rows_of_a_network_tell_conditions_apart_by_more_than_their_label(name):
    """What guidance by distance measures: two doses of one compound are nearer than two compounds."""
    network = network_of(name)
    rows = condition_rows(network)
    if "time" in network.conditioner.tokens.kinds:
        assert rows is None
        return
    compounds = torch.dist(rows[1], rows[4])
    doses = torch.dist(rows[2], rows[3])
    assert 0 < doses < compounds


@pytest.mark.parametrize(("std", "warned"), [(0.02, False), (1.0, True)])
@pytest.mark.parametrize(("backbone", "scheme"), [("unet", "added"), ("unet", "late"), ("dit", "added")])
def test_a_condition_that_drowns_the_time_is_told(backbone, scheme, std, warned):
    network = build(configured(backbone, scheme, embedding_std=std)).train()
    state = torch.get_rng_state()
    ratio = condition_over_time(network, *noisy()[1:])
    warning = condition_warning({MONITOR: ratio.mean().item()})
    assert torch.equal(torch.get_rng_state(), state)
    assert (warning is not None) == warned
    assert warning is None or "Lower network.embedding_std" in warning


def test_tokens_have_no_ratio():
    assert condition_over_time(network_of("cross-attention"), *noisy()[1:]) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scheme": "cross_attention", "tokens": ("compound",)}, "adds a constant"),
        ({"scheme": "added", "tokens": ("compound", "time")}, "leave it out of tokens"),
        ({"scheme": "late", "tokens": ("dose",)}, "name compound"),
        ({"scheme": "one_hot", "compound": "characters"}, "use compound: learned"),
        ({"compound": "characters", "text": "smiles"}, "need each other"),
        ({"text": "smiles", "smiles": {"DMSO": "CS(C)=O"}}, "are read by compound"),
    ],
)
def test_settings_that_say_nothing_together_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ConditioningConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbone": "dit", "scheme": "late"}, "backbone dit has no conditioning.scheme late.*or backbone unet"),
        ({"backbone": "unet", "scheme": "cross_attention"}, "or backbone cross_attention_unet or dit"),
        ({"backbone": "dit", "scheme": "attend_then_project", "tokens": ("compound", "time")}, "for all times"),
        ({"backbone": "cross_attention_unet", "scheme": "cross_attention", "attention_levels": ()}, "name one in"),
    ],
)
def test_backbones_refuse_the_schemes_they_have_not(settings, message):
    own = {key: value for key, value in settings.items() if key in NetworkConfig.model_fields}
    chosen = {key: value for key, value in settings.items() if key not in own}
    with pytest.raises(ValueError, match=message):
        NetworkConfig(**own, conditioning=ConditioningConfig(**chosen))


def test_a_table_renames_a_row_for_the_adapter_that_takes_it():
    renamed = table().renamed(5, "taxol@9")
    assert renamed == replace(table(), names=(*NAMES[:5], "taxol@9"), texts=(*table().texts[:5], "taxol"))
    assert renamed.compound_rows()[5] == 2
