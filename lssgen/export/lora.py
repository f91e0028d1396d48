"""LoRAs: changes of a checkpoint's weights, merged when the weights are read."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lssgen.errors import ModelError
from lssgen.export.changes import Change, Delta, Rows, Whole
from lssgen.export.lora_file import LoraFile, open_lora
from lssgen.lora.adapters import Blocks
from lssgen.lora.asked import Lora
from lssgen.lora.names import Pair, Places, Role, Target, component_of, sorted_keys
from lssgen.lora.strengths import Factors, assumed_note, strengths_of

SHOWN = 20
"""Keys that a message lists at most."""

PER_WEIGHT = 16
"""Tensors of a LoRA for each weight of its checkpoint, at most; four are usual. A file with more would take hours."""

HOPELESS = 200
"""Keys without a weight after which no further ones are looked up, which takes a millisecond each."""


@dataclass(frozen=True, slots=True)
class Merge:
    """What a LoRA does to a checkpoint.

    Attributes:
        changes: Changes by the name of the weight, in the order in which they are made.
        notes: Sentences that the user should read.
    """

    changes: tuple[Mapping[str, Change], ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer's change as the file has it.

    Attributes:
        name: Name of the layer in the file.
        keys: Keys of its tensors, by role.
        pair: The factors; of an embedding's table too.
        table: True where it is the change of a table of embeddings.
    """

    name: str
    keys: Mapping[Role, str]
    pair: Pair[Tensor]
    table: bool = False

    @property
    def rank(self) -> int:
        return self.pair[0].shape[0]


def read_lora(lora: Lora, target: Target[Tensor]) -> Merge:
    """The changes that a LoRA makes.

    Every change is looked up, and renamed where that is needed, by itself: so nothing is dropped unseen, as it is
    where diffusers converts a file in one go, and every alpha counts.

    Raises:
        ModelError: The file is missing or damaged, is another kind of adapter, or has keys that match no weight; lists
            them.
    """
    reader = _Reader(lora, target)
    for file in open_lora(lora.path):
        reader.read(file)
    return reader.merge()


@dataclass
class _Reader:
    """Collects the changes of a LoRA's files.

    Attributes:
        lora: LoRA that the user asked for.
        target: Checkpoint that it is for.
        first, then: Changes by weight: tensors in full and rows, then low-rank sums.
        unmatched: Keys without a weight.
        assumed: Layers whose alpha is taken to be the rank.
        total: Layers there are.
        notes: Sentences for the user.
    """

    lora: Lora
    target: Target[Tensor]
    first: dict[str, Change] = field(default_factory=dict[str, Change])
    then: dict[str, Change] = field(default_factory=dict[str, Change])
    unmatched: list[str] = field(default_factory=list[str])
    assumed: int = 0
    total: int = 0
    notes: list[str] = field(default_factory=list[str])

    def read(self, file: LoraFile) -> None:
        """Take in a file."""
        most = PER_WEIGHT * len(self.target.shapes)
        if len(file.stored) > most:
            raise ModelError(
                f"{file.path} does not fit this checkpoint: it has {len(file.stored)} tensors, a LoRA of this model "
                f"{most} at most"
            )
        keys, rest = sorted_keys(file.stored, file.path)
        layers, tokens = self._layers(file, keys)
        adapter = file.adapters.get("")
        component = file.component
        if adapter is not None and not component:
            # Without prefixes two CLIPs' names are the same; sizes tell them apart.
            component = component_of({one.name: one.pair[1].shape[0] for one in layers}, adapter.model, self.target)
        places = Places(self.target, component)
        strengths = self._strengths(file, layers)
        for layer in layers:
            self._place(file, layer, places, strengths[layer.name])
        self._place_rows(file, tokens, places)
        for key in rest:
            self._place_whole(file, key, places)

    def merge(self) -> Merge:
        """All changes.

        Raises:
            ModelError: There are none, or some have no place.
        """
        if self.unmatched or not (self.first or self.then):
            raise self._misfit()
        if self.assumed:
            self.notes.append(assumed_note(self.lora.path, self.assumed, self.total))
        return Merge(tuple(changes for changes in (self.first, self.then) if changes), tuple(self.notes))

    def _misfit(self) -> ModelError:
        keys = sorted(self.unmatched)
        shown = "".join(f"\n  {key}" for key in keys[:SHOWN]) or " it has no LoRA keys at all"
        more = f"\n  and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
        return ModelError(f"{self.lora.path} does not fit this checkpoint; keys without a weight:{shown}{more}")

    def _layers(self, file: LoraFile, keys: Mapping[str, Mapping[Role, str]]) -> tuple[list[Layer], Mapping[str, str]]:
        """Layers with both factors, and the keys of trained rows by layer; half a change is without a weight."""
        layers: list[Layer] = []
        tokens: dict[str, str] = {}
        for name, roles in keys.items():
            if "down" in roles and "up" in roles:
                layers.append(self._layer(file, name, roles))
            elif "table down" in roles and "table up" in roles:
                # PEFT's change of a table is (B A)^T, with A (rank, words) and B (width, rank): the roles are
                # exchanged.
                pair = (file.tensor(roles["table up"]).T, file.tensor(roles["table down"]).T)
                layers.append(self._checked(file, Layer(name, roles, pair, table=True)))
            elif "tokens" in roles:
                tokens[name] = roles["tokens"]
            else:
                self.unmatched += [key for role, key in roles.items() if role != "alpha"]
        return layers, tokens

    def _layer(self, file: LoraFile, name: str, keys: Mapping[Role, str]) -> Layer:
        down, up = file.tensor(keys["down"]), file.tensor(keys["up"])
        adapter, plain = file.adapter_of(name)
        if adapter is not None and adapter.blocks is not None:
            down, up = _spread(adapter.blocks, plain, (down, up))
        if "diagonal" in keys:
            diagonal = file.tensor(keys["diagonal"]).float().flatten()
            if diagonal.numel() != down.shape[0]:
                raise ModelError(
                    f"{file.path}: {name} has {diagonal.numel()} values between factors of rank {down.shape[0]}"
                )
            # up diag(d) down: the diagonal goes into the first factor.
            down = down.float() * diagonal.reshape(-1, *[1] * (down.ndim - 1))
        return self._checked(file, Layer(name, keys, (down, up)))

    def _checked(self, file: LoraFile, layer: Layer) -> Layer:
        down, up = layer.pair
        if min(down.ndim, up.ndim) < 2 or up[0].numel() != down.shape[0]:
            raise ModelError(
                f"{file.path}: the factors of {layer.name} do not multiply, their shapes are {list(down.shape)} and "
                f"{list(up.shape)}; fetch it again"
            )
        return layer

    def _strengths(self, file: LoraFile, layers: list[Layer]) -> Mapping[str, float]:
        """Alpha / rank of every layer."""
        self.total += len(layers)
        strengths = strengths_of(file, [_factors(file, layer) for layer in layers])
        self.assumed += strengths.assumed
        self.notes += strengths.notes
        return strengths.by_layer

    def _place(self, file: LoraFile, layer: Layer, places: Places[Tensor], strength: float) -> None:
        """Find the weights that a layer's change is for."""
        if layer.table:
            name = places.of_layer(layer.name)
            found = {} if name is None else {name: layer.pair}
        else:
            found = places.of_pair((layer.keys["down"], layer.keys["up"]), layer.name, layer.pair)
        if not found:
            # An alpha alone changes nothing.
            self.unmatched += [key for role, key in layer.keys.items() if role != "alpha"]
            if len(self.unmatched) > HOPELESS:
                raise self._misfit()
            return
        adapter, _ = file.adapter_of(layer.name)
        scale = self.lora.scale * strength
        magnitudes = self._split(file, layer, "magnitude", places)
        for name, (down, up) in found.items():
            self._add(self.then, name, Delta(
                down, up, scale,
                magnitude=magnitudes.get(name),
                axis=1 if layer.table else 0,
                start=adapter.start if adapter is not None else "weight",
                start_scale=strength,
            ))  # fmt: skip
        for name, value in self._split(file, layer, "bias", places).items():
            bias = f"{name.removesuffix('weight')}bias"
            if bias not in self.target.shapes:
                raise ModelError(f"{file.path} changes the bias of {name}, which has none")
            # A bias is a column times one 1, so that it is a change like any other.
            self._add(self.then, bias, Delta(torch.ones(1, 1), value[:, None], scale))

    def _split(self, file: LoraFile, layer: Layer, role: Role, places: Places[Tensor]) -> Mapping[str, Tensor]:
        """One value for each row of the changed weights, by weight; where a fused layer comes apart, so do they."""
        if role not in layer.keys:
            return {}
        value, (down, up) = file.tensor(layer.keys[role]).flatten(), layer.pair
        if layer.table:
            return {str(places.of_layer(layer.name)): value}
        if value.numel() != up.shape[0]:
            raise ModelError(
                f"{file.path} has {value.numel()} values in {layer.keys[role]}, not one for each of the layer's "
                f"{up.shape[0]} outputs; lengths along the inputs are not read here"
            )
        # As factors of rank 1, since renaming takes only these apart where a fused layer is several weights.
        rows = (down[:1], value.reshape(-1, *[1] * (up.ndim - 1)))
        found = places.of_pair((layer.keys["down"], layer.keys["up"]), layer.name, rows)
        return {name: wide.flatten() for name, (_, wide) in found.items()}

    def _place_rows(self, file: LoraFile, tokens: Mapping[str, str], places: Places[Tensor]) -> None:
        """Find the tables of embeddings of which some rows were trained."""
        for layer, key in tokens.items():
            adapter, _ = file.adapter_of(layer)
            rows = {} if adapter is None else adapter.tokens
            # PEFT names layers by the ends of their names.
            at = next((rows[end] for end in rows if layer == end or layer.endswith(f".{end}") or not end), None)
            name = places.of_layer(layer)
            if at is None or name is None:
                self.unmatched.append(key)
            else:
                self._add(self.first, name, Rows(at, file.tensor(key)))

    def _place_whole(self, file: LoraFile, key: str, places: Places[Tensor]) -> None:
        """Find the tensor that a tensor in full is for; only PEFT's configuration says that there are such."""
        adapter, _ = file.adapter_of(key)
        table = key.endswith(".base_layer.weight")  # of embeddings with a LoRA, PEFT saves the table too
        name = places.of_whole(key) if adapter is not None and (adapter.whole or table) else None
        if name is None:
            self.unmatched.append(key)
        else:
            self._add(self.first, name, Whole(file.tensor(key)))

    def _add(self, changes: dict[str, Change], name: str, change: Change) -> None:
        if name in changes:
            raise ModelError(f"{self.lora.path} changes {name} twice, under two names; give one adapter a file")
        changes[name] = change


def _factors(file: LoraFile, layer: Layer) -> Factors:
    return Factors(
        layer=layer.name,
        rank=layer.rank,
        wide=any(size > 1 for size in layer.pair[0].shape[2:]),
        kohya="lora_down" in layer.keys.get("down", ""),
        alpha=file.number(layer.keys["alpha"]) if "alpha" in layer.keys else None,
    )


def _spread(blocks: Blocks, layer: str, pair: Pair[Tensor]) -> Pair[Tensor]:
    """Both factors in full, where one is stored as the blocks of a block-diagonal matrix.

    Raises:
        ModelError: A factor does not divide into the blocks.
    """
    down, up = pair
    if any(part in layer for part in blocks.down):
        return _matrix(blocks.count, layer, down), up
    return (down, _matrix(blocks.count, layer, up)) if any(part in layer for part in blocks.up) else (down, up)


def _matrix(count: int, layer: str, factor: Tensor) -> Tensor:
    if factor.ndim != 2 or factor.shape[0] % count:
        raise ModelError(f"BD-LoRA: {layer} has a factor of shape {list(factor.shape)}, not {count} blocks")
    return torch.block_diag(*factor.chunk(count))
