"""From a checkpoint to a bundle."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module, metadata

import torch

from lssgen.bundle import Bundle
from lssgen.errors import ExportError
from lssgen.export.addons import embedding_here, lora_here
from lssgen.export.checkpoint import Parts
from lssgen.export.config import ExportConfig, PredictionType, Resolution, checked_resolutions, default_resolutions
from lssgen.export.controlnet import with_controlnet
from lssgen.export.hub import Model, find_model, see_prediction
from lssgen.export.inspection import see_classes, see_weights
from lssgen.export.store import Store, open_store
from lssgen.export.super_resolution import read_network
from lssgen.export.tokenizers import convert_tokenizer
from lssgen.export.upsampler import Chosen, choose_upsampler, missing_note
from lssgen.export.vae import with_vae
from lssgen.export.workshop import Say, Workshop
from lssgen.machine import at_most_cpus
from lssgen.manifest import Graph, Manifest, Source, Tokens
from lssgen.models.aliases import with_scheduler
from lssgen.models.configs import PIPELINE
from lssgen.models.controlnets import PART, controlled
from lssgen.models.families import facts_from_configs, text_tokens
from lssgen.models.nets.recipe import Blueprint, Recipe, Wishes
from lssgen.models.nets.slots import with_slots
from lssgen.models.nets.transition import Ways, transition_recipes
from lssgen.plan.facts import ModelFacts, ScalingSpace
from lssgen.plan.sampling import described, with_choice
from lssgen.progress import followed

T5_PARTS = ("text_encoder_3", "tokenizer_3")

ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
"""Parts that encode prompts, as diffusers calls them."""
CLIP = "CLIPTextModel"
"""Beginning of the names of CLIP's classes, with a projection and without."""

LONGEST_TEXT = 4096
"""Tokens; published models were trained with 1024 at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """A bundle before anything of it is made.

    Attributes:
        model: The checkpoint, with the upsampler and the LoRAs that were asked for.
        wishes: Choices that decide its graphs.
        facts: The model as the plan sees it.
        blueprint: The family's graphs, tokenizers and rules.
        recipes: All graphs, transitions too.
        resolutions: Stage sizes, smallest first.
        upsampler: None where there is none for this VAE.
        notes: Sentences that the user should read.
    """

    model: Model
    wishes: Wishes
    facts: ModelFacts
    blueprint: Blueprint
    recipes: tuple[Recipe, ...]
    resolutions: tuple[Resolution, ...]
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
    outline = design(config)
    for note in outline.notes:
        say(note)
    with open_store(config.output) as store, followed(say) as follower:
        workshop = Workshop(
            checkpoint=outline.model.checkpoint,
            cell_px=outline.facts.cell_px,
            resolutions=outline.resolutions,
            branches=2 if outline.facts.guidance == "branches" else 1,
            token_axes=outline.blueprint.token_axes,
            precision=config.precision,
            probe=config.probe,
            threads=at_most_cpus(config.threads, "threads", say),
            store=store,
            say=say,
            notes=list(outline.notes),
        )
        tokenizers = _tokenizers(outline, store)
        # 1 +: a transition by interpolation has no weights, but is a graph to be made all the same.
        sizes = {recipe.name: 1 + workshop.stored_bytes(recipe) for recipe in outline.recipes}
        graphs: dict[str, Graph] = {}
        for number, recipe in enumerate(outline.recipes, start=1):
            done = sum(sizes[name] for name in graphs) / sum(sizes.values())
            follower.at(done, f"{recipe.name}, graph {number} of {len(sizes)}")
            graphs[recipe.name] = workshop.graph(recipe)
        manifest = Manifest(
            lssgen=metadata.version("lssgen"),
            family=outline.model.family.name,
            facts=outline.facts,
            source=_source(outline),
            resolutions=outline.resolutions,
            history=outline.wishes.history,
            graphs=graphs,
            tokenizers=tokenizers,
            token_axes=outline.blueprint.token_axes,
            empty_negative=outline.blueprint.empty_negative,
            upsampler=None if outline.upsampler is None else outline.upsampler.record,
            references=outline.blueprint.references,
            notes=tuple(dict.fromkeys(workshop.notes)),
        )
        return store.finish(manifest)


def design(config: ExportConfig) -> Design:
    """Find the checkpoint, and see that a bundle can be made of it as asked; fetches and converts, no more.

    Raises:
        ModelError, PlanError, ExportError: As for `export`.
    """
    model = _model(config)
    made_of = [part for part in model.family.classes if config.t5 or part not in T5_PARTS]
    see_classes(model.checkpoint, model.family, made_of)
    length = _text_length(config, model)
    own = _facts(model, length, config.prediction_type)
    facts = with_choice(
        own,
        scheduler=config.scheduler,
        timestep_spacing=config.timestep_spacing,
        sigma_schedule=config.sigma_schedule,
    )
    sampled = [f"Sampled with {described(facts)}, as asked."] if facts != own else []
    wishes = Wishes(
        channels=facts.channels,
        skip_layers=config.skip_layers,
        skipped=config.layers_to_skip or model.skip_layers,
        t5=config.t5,
        clip_skip=config.clip_skip,
        max_sequence_length=length,
        history=model.family.history,
        cell_px=facts.cell_px,
        reference_tokens=_reference_tokens(config.references, facts),
    )
    chosen = choose_upsampler(model, facts.channels, config.upsampler, convert=config.convert_latents)
    facts = _with_spaces(facts, [space for space in config.spaces if space != "resnet" or chosen is not None])
    if chosen is not None:
        model = replace(model, checkpoint=model.checkpoint.with_part("upsampler", chosen.folder))
    embeddings = [replace(one, path=embedding_here(one.path)) for one in config.embeddings]
    # Before the LoRAs: their fit is seen in shapes, and a taught table is longer.
    model = replace(model, checkpoint=model.checkpoint.with_embeddings(embeddings))
    components = Parts(model.checkpoint, torch.float32)
    blueprint: Blueprint = import_module(model.family.nets).blueprint(components, wishes)
    if not config.text_encoder:
        blueprint = _without_text(blueprint)
    if config.references and blueprint.references is None:
        raise ExportError(f"{model.family.title} sees no reference pictures; export without --references")
    if config.skip_layers:
        _see_layers(model, wishes.skipped, blueprint.layers)
    # Even where others are asked for: that the scheduler can be planned with is seen before anything is made.
    usual = default_resolutions(facts)
    parts = dict.fromkeys(part for recipe in blueprint.recipes for part in recipe.components)
    see_weights(model.checkpoint, model.family, parts)
    loras = [replace(lora, path=lora_here(lora.path)) for lora in config.loras]
    # LoRAs are for the checkpoint's own parts: names of a ControlNet's layers may be those of the network's.
    own_parts = [part for part in parts if part != PART]
    model = replace(model, checkpoint=model.checkpoint.with_loras(loras, own_parts, model.family.network))
    merged = [f"LoRA {lora.path.name} is merged in with strength {lora.scale:g}." for lora in config.loras]
    return Design(
        model=model,
        wishes=wishes,
        facts=facts,
        blueprint=blueprint,
        recipes=(
            *(_slotted(recipe, components, config, model.family.network) for recipe in blueprint.recipes),
            *transition_recipes(
                components,
                facts.scaling_spaces,
                facts.channels,
                _ways(config, model, chosen),
                overflows=any(recipe.overflows for recipe in blueprint.recipes if recipe.name == "decode"),
            ),
        ),
        resolutions=checked_resolutions(config.resolutions or usual, facts),
        upsampler=chosen,
        notes=(
            *model.notes,
            *sampled,
            *blueprint.notes,
            *merged,
            *model.checkpoint.notes,
            chosen.note if chosen is not None else missing_note(model, facts.channels),
        ),
    )


def _without_text(blueprint: Blueprint) -> Blueprint:
    """The graphs without the one that encodes prompts. Its tokenizers stay: they know how long a prompt is."""
    note = "The bundle has no text encoder: every run is given the embeddings of its prompts."
    return replace(
        blueprint,
        recipes=tuple(recipe for recipe in blueprint.recipes if recipe.name != "text"),
        tokens=tuple(replace(rule, heard=None) for rule in blueprint.tokens),
        notes=(*blueprint.notes, note),
    )


def _model(config: ExportConfig) -> Model:
    """The checkpoint, with the VAE and the prediction type that were asked for."""
    model = find_model(
        config.model,
        config.revision,
        without=() if config.t5 else T5_PARTS,
        base=config.base,
        lean=(*(("vae",) if config.vae is not None else ()), *(() if config.text_encoder else ENCODERS)),
        prediction=config.prediction_type,
    )
    if config.prediction_type is not None:
        see_prediction(model.family, config.prediction_type)
    model = model if config.vae is None else with_vae(model, config.vae)
    return model if config.controlnet is None else with_controlnet(model, config.controlnet)


def _text_length(config: ExportConfig, model: Model) -> int:
    """Tokens of the long text encoder; 0 where there is none, or where the user wants no room for it.

    Raises:
        ExportError: There is no room for a token, or for absurdly many.
    """
    asked = config.max_sequence_length
    if asked is None or not model.family.max_sequence_length:
        return model.max_sequence_length
    # True is 1: with T5 at least one token is read, without it none will do.
    if not config.t5 <= asked <= LONGEST_TEXT:
        without = ", or for --no-t5" if T5_PARTS[0] in model.family.optional else ""
        raise ExportError(
            f"the long text encoder cannot read {asked} tokens: ask for a --max-sequence-length of {int(config.t5)} to "
            f"{LONGEST_TEXT}{without}"
        )
    return asked


def _reference_tokens(sizes: Sequence[Resolution], facts: ModelFacts) -> int:
    """Tokens of reference pictures of these sizes.

    Raises:
        ExportError: One has none.
    """
    unit = facts.cell_px * facts.patch
    for height, width in sizes:
        if min(height, width) < unit:
            raise ExportError(f"a reference picture of {width} x {height} px has no token of {unit} px; ask for more")
    return sum((height // unit) * (width // unit) for height, width in sizes)


def _facts(model: Model, text_length: int, prediction: PredictionType | None) -> ModelFacts:
    named = ("scheduler", *(part for part in model.family.classes if model.checkpoint.has(part)))
    configs = {name: model.checkpoint.config(name) for name in named if name not in T5_PARTS}
    configs["scheduler"] = {**configs["scheduler"], **model.sampling}
    configs[PIPELINE] = model.checkpoint.index
    if prediction is not None:
        configs["scheduler"] = {**configs["scheduler"], "prediction_type": prediction}
    amended = with_scheduler(configs, model.scheduler)
    facts = facts_from_configs(model.family, amended, model.defaults, name=model.name, max_sequence_length=text_length)
    if not model.checkpoint.has(PART):
        return facts
    return controlled(facts, model.checkpoint.config(PART), text_tokens(model.family, amended, text_length))


def _with_spaces(facts: ModelFacts, spaces: Sequence[ScalingSpace]) -> ModelFacts:
    """The model with some ways from stage to stage; the first is its default, where it has not its own any more."""
    fitting = tuple(space for space in spaces if space in facts.scaling_spaces)
    if not fitting:
        raise ExportError(
            f"none of the transitions {', '.join(spaces) or 'asked for'} can be made for {facts.name}: resnet needs an "
            "upsampler; latent and dct need nothing"
        )
    own = facts.defaults.scaling_space
    default = own if own in fitting else fitting[0]
    return replace(facts, scaling_spaces=fitting, defaults=replace(facts.defaults, scaling_space=default))


def _slotted(recipe: Recipe, components: Parts, config: ExportConfig, network: str) -> Recipe:
    """A recipe with room for LoRAs, where that is asked for: the network's, and that of CLIP's encoders, which trainers
    change too, and T5's and language models' they do not."""
    parts = {
        "step": [network],
        "text": [part for part in recipe.components if components.checkpoint.class_of(part).startswith(CLIP)],
    }.get(recipe.name, ())
    if not config.lora_slots or not parts:
        return recipe
    return with_slots(recipe, components, config.lora_slots * config.lora_rank, config.lora_layers, parts)


def _ways(config: ExportConfig, model: Model, chosen: Chosen | None) -> Ways:
    """What the graphs between stages are made with."""
    network = None if config.sr is None else read_network(config.sr)
    return Ways(
        latents=model.latents,
        convert_to=chosen.record.converted_to if chosen else None,
        enlarge=None if network is None else network.enlarge,
        enlarge_sha256="" if network is None else network.sha256,
    )


def _see_layers(model: Model, layers: tuple[int, ...], gates: int) -> None:
    """See that the layers that the third guidance branch leaves out are there.

    Raises:
        ExportError: The family has no gates, the authors name no layers, or there are no such layers.
    """
    if not gates:
        raise ExportError(f"{model.family.title} has no skip-layer guidance; export without --skip-layers")
    if not layers:
        raise ExportError(
            f"the authors of {model.name} name no layers to skip; name some, for instance --skip-layers 7,8,9 "
            f"(this network has layers 0 to {gates - 1})"
        )
    if not all(0 <= layer < gates for layer in layers):
        raise ExportError(f"{model.name} has layers 0 to {gates - 1}; cannot skip {', '.join(map(str, layers))}")


def _tokenizers(outline: Design, store: Store) -> tuple[Tokens, ...]:
    found: list[Tokens] = []
    checkpoint = outline.model.checkpoint
    with store.draft("tokenizers") as draft:
        for rule in outline.blueprint.tokens:
            name = f"{rule.component}.json"
            folder, kind = checkpoint.path(rule.component), checkpoint.class_of(rule.component)
            taught = checkpoint.taught.get(rule.component.replace("tokenizer", "text_encoder"))
            words = () if taught is None else taught.words
            found.append(convert_tokenizer(folder, kind, rule, draft / name, name, words))
            store.write(name, (draft / name).read_bytes())
    return tuple(found)


def _source(outline: Design) -> Source:
    model = outline.model
    parts = dict.fromkeys(part for recipe in outline.recipes for part in recipe.components)
    hashes = {f"{part}/{file}": sha for part in parts for file, sha in model.checkpoint.sha256(part).items()}
    return Source(model=model.source, revision=model.revision, licence=model.licence, sha256=hashes)
