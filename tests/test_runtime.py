import torch

from cellbridge.runtime import derive_seed, generator, noise_per_image


def test_a_seed_is_a_function_of_its_parts_and_their_types() -> None:
    assert derive_seed("x_T", 1) == derive_seed("x_T", 1)
    seeds = {
        derive_seed("x_T", 1),
        derive_seed("x_T", "1"),
        derive_seed("x_T", 1, 0),
        derive_seed("eta", 1),
        derive_seed("x_T1"),
    }
    assert len(seeds) == 5
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_noise_of_an_image_does_not_depend_on_its_batch() -> None:
    seeds = torch.arange(8)
    whole = noise_per_image(seeds, (2, 4, 4), purpose="x_T")
    parts = torch.cat([noise_per_image(some, (2, 4, 4), purpose="x_T") for some in seeds.split(3)])
    torch.testing.assert_close(whole, parts, rtol=0, atol=0)


def test_the_global_random_state_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    noise_per_image(torch.arange(3), (2, 2), purpose="x_T")
    generator("cpu", "anything")
    assert torch.equal(before, torch.random.get_rng_state())
