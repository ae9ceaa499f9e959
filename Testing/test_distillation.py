"""A student's target: one step of its own ends where several of its teacher's do."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch
from conftest import small_card, write_small_model
from test_train_engine import CASES, EXACT, small_recipe

from MedDPMLib import load_model
from MedDPMLib.diffusion.samplers import plan_steps, sample, timestep_grid
from MedDPMLib.diffusion.schedule import make_schedule
from MedDPMLib.errors import MedDPMError
from MedDPMLib.masks.schemes import load_scheme
from MedDPMLib.models.card import QUALITIES
from MedDPMLib.recipes.recipe import load_recipe, recipe_card, recipe_toml
from MedDPMLib.train.distillation import Teacher
from MedDPMLib.train.engine import Engine
from MedDPMLib.train.examples import Examples, batch_numbers
from MedDPMLib.train.export import export_run
from MedDPMLib.train.run import train

ANATOMY = load_scheme("anatomy")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    card = replace(small_card(ANATOMY, timesteps=250), positions=True)
    card = replace(card, network={"kind": "wavelet-unet", "channels": [8, 16], "timesteps": 250})
    return write_small_model(tmp_path_factory.mktemp("model") / "teacher.safetensors", card)


def student_recipe(teacher, *changes: str, steps: int = 2, teacher_steps: int = 6):
    table = f'distillation={{teacher="{teacher}", teacher_steps={teacher_steps}, steps={steps}}}'
    return small_recipe(table, "label_dropout=0", *changes)


@pytest.mark.parametrize("steps", [1, 2, 3, 6])
def test_the_students_steps_end_where_the_teachers_do(teacher, steps):
    """A student that had learned everything would make the teacher's image, to rounding."""
    recipe = student_recipe(teacher, steps=steps)
    schedule = make_schedule(**recipe.schedule)
    learned = Teacher(recipe, schedule, EXACT.device, torch.float32)
    model = load_model(teacher)
    condition = torch.rand(2, 24, 8, 8, 16, generator=torch.Generator().manual_seed(5))

    noise = {"shape": (2, 2, 8, 8, 16), "generator": torch.Generator().manual_seed(3)}
    expected = sample(model.network, condition, schedule, method="ddim", steps=6, prediction="x0", **noise)
    assert expected.std() > 0.05
    x = torch.randn(noise["shape"], generator=noise["generator"].manual_seed(3))
    for (step,) in plan_steps(schedule, "ddim", steps):  # without the sampler's clip: several steps may go farther
        x = step.x * x + step.x0 * learned.x0(x, torch.full((2,), step.t), condition)
    torch.testing.assert_close(x, expected, atol=2e-4, rtol=0)


def test_each_example_of_a_batch_has_its_own_noise(teacher):
    recipe = student_recipe(teacher)
    learned = Teacher(recipe, make_schedule(**recipe.schedule), EXACT.device, torch.float32)
    x, condition = torch.randn(2, 2, 8, 8, 16), torch.rand(2, 24, 8, 8, 16)
    t = torch.tensor(timestep_grid(250, 2))
    together = learned.x0(x, t, condition)
    for index in range(2):
        one = slice(index, index + 1)
        torch.testing.assert_close(together[one], learned.x0(x[one], t[one], condition[one]), atol=1e-5, rtol=0)


def test_only_the_students_timesteps_are_learned(teacher):
    made = Examples(student_recipe(teacher), student_recipe(teacher).stages[0], CASES)
    grid = timestep_grid(250, 2)
    assert {int(made.batch([number]).t) for number in range(20)} == set(grid)
    assert {int(batch.t) for batch in made.held_out()} == set(grid)


@pytest.mark.parametrize("space", ["x0", "v"])
def test_a_student_learns_from_its_teacher_and_not_from_the_image(teacher, space):
    """The loss is that of the same example whose image and noise are those that the teacher's answer implies."""
    recipe = student_recipe(teacher, f"training.loss_space={space}")
    made = Examples(recipe, recipe.stages[0], CASES)
    engine, alone = Engine(recipe, EXACT), Engine(replace(recipe, distillation=None), EXACT)
    for one in (engine, alone):
        one.start_from(load_model(teacher).network.state_dict())
    batch = made.batch([0])
    x_t = engine.task.schedule.add_noise(batch.x0, batch.t, batch.noise)
    x0 = engine.task.teacher.x0(x_t, batch.t, batch.condition)
    taught = replace(batch, x0=x0, noise=engine.task.schedule.noise_from(x0, x_t, batch.t, "x0"))
    found, expected, untaught = (
        one.task.loss(one.network, example).item()
        for one, example in ((engine, batch), (alone, taught), (alone, batch))
    )
    assert found == pytest.approx(expected, rel=1e-3)
    assert abs(found - untaught) > 0.1 * untaught


def test_from_the_teachers_weights_in_as_many_steps_there_is_nothing_to_learn(teacher):
    recipe = student_recipe(teacher, steps=6)
    made = Examples(recipe, recipe.stages[0], CASES)
    engine = Engine(recipe, EXACT)
    engine.start_from(load_model(teacher).network.state_dict())
    # The teacher clips its image, the student's training does not.
    batches = [made.batch(numbers) for numbers in batch_numbers(recipe, 0)]
    noisy = [(engine.task.schedule.add_noise(b.x0, b.t, b.noise), b.t, b.condition) for b in batches]
    taught = [engine.task.teacher.x0(*seen) for seen in noisy]
    said = [engine.network(*seen) for seen in noisy]
    torch.testing.assert_close(taught[0], said[0].detach().clamp(-1, 1), atol=1e-4, rtol=0)


def test_a_run_of_a_student_becomes_a_model_of_few_steps(teacher, tmp_path):
    recipe = student_recipe(teacher, "stages.0.iterations=2", "monitor.checkpoint_every=1", "monitor.montage_every=0")
    train(recipe, CASES, tmp_path / "run", execution=EXACT)
    card = export_run(tmp_path / "run", tmp_path / "student.safetensors")
    assert card.qualities == dict.fromkeys(QUALITIES, {"sampler": "ddim", "steps": 2})
    assert "It was distilled to take 6 steps of small in 2." in card.training
    (tmp_path / "again.toml").write_text(recipe_toml(recipe), encoding="utf-8")
    assert load_recipe(tmp_path / "again.toml").distillation == recipe.distillation
    assert recipe_card(recipe).network_description == card.network_description


def test_a_run_goes_on_with_the_same_teacher_only(teacher, tmp_path):
    settled = ("monitor.checkpoint_every=1", "monitor.montage_every=0")
    mine = tmp_path / "mine.safetensors"
    shutil.copy(teacher, mine)
    train(student_recipe(mine, "stages.0.iterations=1", *settled), CASES, tmp_path / "run", execution=EXACT)
    more = student_recipe(mine, "stages.0.iterations=2", *settled)
    with pytest.raises(MedDPMError, match="another model"):
        train(replace(more, distillation=None), CASES, tmp_path / "run", execution=EXACT)
    train(more, CASES, tmp_path / "run", execution=EXACT)
    write_small_model(mine, load_model(teacher).card, seed=1)
    with pytest.raises(MedDPMError, match="the teacher .* has changed"):
        train(student_recipe(mine, "stages.0.iterations=3", *settled), CASES, tmp_path / "run", execution=EXACT)


def test_what_cannot_be_distilled_is_reported(teacher):
    with pytest.raises(MedDPMError, match='"teacher_steps" must be a multiple of "steps" \\(4\\)'):
        student_recipe(teacher, steps=4)
    with pytest.raises(MedDPMError, match="at most the 250 timesteps"):
        student_recipe(teacher, teacher_steps=500)
    with pytest.raises(MedDPMError, match='lacks the field "steps"'):
        small_recipe('distillation={teacher="brain-anatomy", teacher_steps=4}')
    with pytest.raises(MedDPMError, match='has another "modalities"'):
        Engine(student_recipe(teacher, 'modalities=["t1", "flair"]'), EXACT)
    with pytest.raises(MedDPMError, match="set label_dropout to 0"):
        Engine(student_recipe(teacher, "label_dropout=0.1"), EXACT)
