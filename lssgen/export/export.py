"""From a checkpoint to a bundle."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import torch

from lssgen.bundle import Bundle, Manifest, SkipLayers, Source, Tokens
from lssgen.errors import ExportError
from lssgen.export.checkpoint import Parts
from lssgen.export.config import ExportConfig, Resolution, checked_resolutions, default_resolutions
from lssgen.export.hub import Model, find_model
from lssgen.export.store import Store, open_store
from lssgen.export.tokenizers import convert_tokenizer
from lssgen.export.upsampler import MISSING, Chosen, choose_upsampler
from lssgen.export.workshop import Say, Workshop
from lssgen.models.aliases import with_scheduler
from lssgen.models.configs import configs_from_folder
from lssgen.models.families import facts_from_configs
from lssgen.models.nets.recipe import Blueprint, Recipe, Wishes
from lssgen.models.nets.transition import transition_recipes
from lssgen.plan.facts import ModelFacts, ScalingSpace

T5_PARTS = ("text_encoder_3", "tokenizer_3")

LONGEST_TEXT = 4096
"""Tokens; published models were trained with 1024 at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """A bundle before anything of it is made.

    Attributes:
        model: The checkpoint, with the upsampler and the LoRAs that were asked for.
        wishes: What was asked of its graphs.
        facts: What the plan must know.
        blueprint: The family's graphs, tokenizers and rules.
        recipes: All graphs, transitions too.
        resolutions: Stage sizes, smallest first.
        skip_layers: Skip-layer guidance, if it was asked for.
        upsampler: None where there is none for this VAE.
        notes: What the user should know, one sentence each.
    """

    model: Model
    wishes: Wishes
    facts: ModelFacts
    blueprint: Blueprint
    recipes: tuple[Recipe, ...]
    resolutions: tuple[Resolution, ...]
    skip_layers: SkipLayers | None
    upsampler: Chosen | None
    notes: tuple[str, ...]


def export(config: ExportConfig, say: Say = lambda _: None) -> Bundle:
    """Make a bundle, finish one that was interrupted, or bring one up to date.

    Args:
        config: What to make.
        say: Told what happens, a line at a time.

    Raises:
        ModelError: The checkpoint, a LoRA or the upsampler does not fit.
        PlanError: The checkpoint's scheduler cannot be planned with.
        ExportError: A graph cannot be made, does not pass its probe, or the folder cannot be written.
    """
    plan = design(config)
    for note in plan.notes:
        say(note)
    with open_store(config.output) as store:
        workshop = Workshop(
            checkpoint=plan.model.checkpoint,
            cell_px=plan.facts.cell_px,
            resolutions=plan.resolutions,
            branches=2 if plan.facts.guidance == "branches" else 1,
            token_axes=plan.blueprint.token_axes,
            precision=config.precision,
            probe=config.probe,
            threads=config.threads,
            store=store,
            say=say,
            notes=list(plan.notes),
        )
        tokenizers = _tokenizers(plan, store)
        graphs = {recipe.name: workshop.graph(recipe) for recipe in plan.recipes}
        manifest = Manifest(
            lssgen=metadata.version("lssgen"),
            family=plan.model.family.name,
            facts=plan.facts,
            source=_source(plan),
            resolutions=plan.resolutions,
            history=plan.wishes.history,
            graphs=graphs,
            tokenizers=tokenizers,
            token_axes=plan.blueprint.token_axes,
            size_ports=plan.blueprint.size_ports,
            empty_negative=plan.blueprint.empty_negative,
            skip_layers=plan.skip_layers,
            upsampler=None if plan.upsampler is None else plan.upsampler.record,
            notes=tuple(dict.fromkeys(workshop.notes)),
        )
        return store.finish(manifest)


def design(config: ExportConfig) -> Design:
    """Find the checkpoint, and see that a bundle can be made of it as asked; fetches and converts, no more.

    Raises:
        ModelError, PlanError, ExportError: As for `export`.
    """
    model = find_model(config.model, config.revision, without=() if config.t5 else T5_PARTS, base=config.base)
    wishes = Wishes(
        skip_layers=config.skip_layers,
        t5=config.t5,
        max_sequence_length=_text_length(config, model),
        history=model.family.history,
    )
    facts = _facts(model, wishes)
    chosen = choose_upsampler(model, facts.channels, config.upsampler, convert=config.convert_latents)
    if chosen is None:
        facts = _without_resnet(facts)
    else:
        model = replace(model, checkpoint=model.checkpoint.with_part("upsampler", chosen.folder))
    components = Parts(model.checkpoint, torch.float32)
    blueprint: Blueprint = import_module(model.family.nets).blueprint(components, wishes)
    usual = default_resolutions(facts)
    parts = dict.fromkeys(part for recipe in blueprint.recipes for part in recipe.components)
    loras = [f"LoRA {lora.path.name} is merged in with strength {lora.scale:g}." for lora in config.loras]
    return Design(
        model=replace(model, checkpoint=model.checkpoint.with_loras(config.loras, parts, model.family.network)),
        wishes=wishes,
        facts=facts,
        blueprint=blueprint,
        recipes=(
            *blueprint.recipes,
            *transition_recipes(
                components,
                facts.scaling_spaces,
                facts.channels,
                chosen.record.converted_to if chosen else None,
                overflows=any(recipe.overflows for recipe in blueprint.recipes if recipe.name == "decode"),
            ),
        ),
        resolutions=checked_resolutions(config.resolutions or usual, facts),
        skip_layers=_skip_layers(config, model, blueprint.layers),
        upsampler=chosen,
        notes=(*blueprint.notes, *loras, _upsampler_note(chosen, model)),
    )


def _text_length(config: ExportConfig, model: Model) -> int:
    """Tokens of the long text encoder; 0 where there is none, or where the user wants no room for it.

    Raises:
        ExportError: There is no room for a token, or for absurdly many.
    """
    asked = config.max_sequence_length
    if asked is None or not model.family.max_sequence_length:
        return model.max_sequence_length
    if not config.t5 <= asked <= LONGEST_TEXT:
        without = ", or for --no-t5" if T5_PARTS[0] in model.family.optional else ""
        raise ExportError(
            f"the long text encoder cannot read {asked} tokens: ask for a --max-sequence-length of {int(config.t5)} to "
            f"{LONGEST_TEXT}{without}"
        )
    return asked


def _facts(model: Model, wishes: Wishes) -> ModelFacts:
    configs: dict[str, Mapping[str, Any]] = dict(configs_from_folder(model.checkpoint.folder))
    configs.update({name: model.checkpoint.config(name) for name in model.checkpoint.extra})
    amended = with_scheduler(configs, model.scheduler)
    return facts_from_configs(
        model.family, amended, model.defaults, name=model.name, max_sequence_length=wishes.max_sequence_length
    )


def _without_resnet(facts: ModelFacts) -> ModelFacts:
    spaces: tuple[ScalingSpace, ...] = tuple(space for space in facts.scaling_spaces if space != "resnet")
    return replace(facts, scaling_spaces=spaces, defaults=replace(facts.defaults, scaling_space=spaces[0]))


def _skip_layers(config: ExportConfig, model: Model, gates: int) -> SkipLayers | None:
    """What the third guidance branch leaves out.

    Raises:
        ExportError: The family has no gates, the authors name no layers, or there are no such layers.
    """
    if not config.skip_layers:
        return None
    if not gates:
        raise ExportError(f"{model.family.title} has no skip-layer guidance; export without --skip-layers")
    layers = config.layers_to_skip or model.skip_layers
    if not layers:
        raise ExportError(
            f"the authors of {model.name} name no layers to skip; name some, for instance --skip-layers 7,8,9 "
            f"(this network has layers 0 to {gates - 1})"
        )
    if not all(0 <= layer < gates for layer in layers):
        raise ExportError(f"{model.name} has layers 0 to {gates - 1}; cannot skip {', '.join(map(str, layers))}")
    return SkipLayers(layers=layers, num_layers=gates)


def _upsampler_note(chosen: Chosen | None, model: Model) -> str:
    if chosen is not None:
        return chosen.note
    return MISSING.format(vae=model.checkpoint.path("vae") if Path(model.source).is_file() else model.source)


def _tokenizers(plan: Design, store: Store) -> tuple[Tokens, ...]:
    found: list[Tokens] = []
    checkpoint = plan.model.checkpoint
    with store.draft("tokenizers") as draft:
        for rule in plan.blueprint.tokens:
            name = f"{rule.component}.json"
            folder, kind = checkpoint.path(rule.component), checkpoint.class_of(rule.component)
            found.append(convert_tokenizer(folder, kind, rule, draft / name, name))
            store.write(name, (draft / name).read_bytes())
    return tuple(found)


def _source(plan: Design) -> Source:
    model = plan.model
    parts = dict.fromkeys(part for recipe in plan.recipes for part in recipe.components)
    hashes = {f"{part}/{file}": sha for part in parts for file, sha in model.checkpoint.sha256(part).items()}
    return Source(model=model.source, revision=model.revision, licence=model.licence, sha256=hashes)
