"""Build the demo model's CLIP tokenizer and teach its two CLIP text encoders what a caption says.

The encoders learn before the transformer, as CLIP does before a diffusion model: linear heads read every factor of the
caption (colours, shapes, relation or size, background) off the pooled vector and off the features that SD3 uses. The
heads are then thrown away.
"""

import argparse
import itertools
import json
import time
from collections import Counter
from pathlib import Path

import torch
import torch.nn.functional as F
from scenes import BACKGROUNDS, COLOURS, RELATIONS, SHAPES, SIZES, all_captions, is_held_out, parse
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

TOKENS = 16
"""Tokens of a prompt, <|startoftext|> and <|endoftext|> counted in; the longest caption has 14."""
PROJECTION = 64
ENCODERS = (("text_encoder", 96, "quick_gelu"), ("text_encoder_2", 64, "gelu"))
"""Folder, width and activation; both have 3 layers, of which SD3 uses the second one's output."""
NO_SECOND_COLOUR, NO_SECOND_SHAPE = len(COLOURS), len(SHAPES)
CHOICES = (
    len(COLOURS),
    len(SHAPES),
    len(RELATIONS) + len(SIZES),
    len(COLOURS) + 1,
    len(SHAPES) + 1,
    len(BACKGROUNDS),
)
"""Number of values of each factor, in the order of `factors`."""


def learn_merges(words: list[str]) -> list[tuple[str, str]]:
    """Byte-pair merges in rank order: merge the most frequent pair until every word is one token."""
    pieces = [[*word[:-1], word[-1] + "</w>"] for word in words]
    merges: list[tuple[str, str]] = []
    while any(len(word) > 1 for word in pieces):
        counts = Counter(pair for word in pieces for pair in itertools.pairwise(word))
        pair = min(counts, key=lambda p: (-counts[p], p))
        merges.append(pair)
        for word in pieces:
            at = 0
            while at < len(word) - 1:
                if (word[at], word[at + 1]) == pair:
                    word[at : at + 2] = ["".join(pair)]
                at += 1
    return merges


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """Write vocab.json and merges.txt to `folder`: every byte, and one token for each word of the grammar."""
    words = sorted({word for text in all_captions() for word in text.split()} | {"a"})
    merges = learn_merges(words)
    letters = sorted(ByteLevel.alphabet())
    names = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges)]
    names = [*dict.fromkeys(names), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {name: number for number, name in enumerate(names)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    end = "<|endoftext|>"
    special = {"bos_token": "<|startoftext|>", "eos_token": end, "unk_token": end, "pad_token": end}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": TOKENS, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2))
    return CLIPTokenizer.from_pretrained(folder)


def factors(text: str) -> list[int]:
    """Class numbers: colour, shape, relation (or size, for a lone thing), second colour, second shape, background."""
    said = parse(text)
    first, second = said.things[0], said.things[1] if said.relation else None
    return [
        list(COLOURS).index(first.colour),
        SHAPES.index(first.shape),
        list(RELATIONS).index(said.relation) if said.relation else len(RELATIONS) + SIZES.index(str(first.size)),
        list(COLOURS).index(second.colour) if second else NO_SECOND_COLOUR,
        SHAPES.index(second.shape) if second else NO_SECOND_SHAPE,
        list(BACKGROUNDS).index(said.background),
    ]


def token_ids(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Token numbers (n, TOKENS), padded as the pipeline pads them."""
    return tokenizer(texts, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt").input_ids


def build_encoder(tokenizer: CLIPTokenizer, width: int, activation: str) -> CLIPTextModelWithProjection:
    """A CLIP text tower of 3 layers with heads of 32."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=3,
        num_attention_heads=width // 32,
        max_position_embeddings=TOKENS,
        projection_dim=PROJECTION,
        hidden_act=activation,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    return CLIPTextModelWithProjection(config)


def readings(encoder: CLIPTextModelWithProjection, heads: nn.ModuleList, ids: Tensor) -> list[list[Tensor]]:
    """Logits of every factor, read off the pooled vector, the feature at the end of the text, and the last padding."""
    out = encoder(ids, output_hidden_states=True)
    features = out.hidden_states[-2]
    end = (ids == encoder.config.eos_token_id).int().argmax(1)
    places = (out.text_embeds, features[torch.arange(len(ids)), end], features[:, -1])
    return [[head(place) for head in group] for group, place in zip(heads, places, strict=True)]


def teach(encoder: CLIPTextModelWithProjection, ids: Tensor, truth: Tensor, held_out: Tensor, steps: int) -> None:
    """Train on the captions that are not held out. ids: (n, TOKENS); truth: (n, 6); held_out: (n,) bool."""
    widths = (PROJECTION, encoder.config.hidden_size, encoder.config.hidden_size)
    heads = nn.ModuleList(nn.ModuleList(nn.Linear(width, n) for n in CHOICES) for width in widths)
    parameters = [*encoder.parameters(), *heads.parameters()]
    optimiser = torch.optim.AdamW(parameters, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    pool, start = (~held_out).nonzero().squeeze(1), time.perf_counter()
    lone = pool[truth[pool, 4] == NO_SECOND_SHAPE]
    for step in range(1, steps + 1):
        chosen = torch.cat([pool[torch.randint(len(pool), (208,))], lone[torch.randint(len(lone), (24,))]])
        groups = readings(encoder, heads, ids[chosen])
        loss = sum(F.cross_entropy(logits, truth[chosen, k]) for group in groups for k, logits in enumerate(group))
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        if step % 100 == 0:
            with torch.no_grad():
                groups = readings(encoder, heads, ids[held_out])
            right = [
                float(
                    torch.stack([g.argmax(1) == truth[held_out, k] for k, g in enumerate(group)]).all(0).float().mean()
                )
                for group in groups
            ]
            print(
                f"step {step}: loss {loss:.3f}, held-out captions read right {right}, "
                f"{time.perf_counter() - start:.0f} s",
                flush=True,
            )


def main(out: Path, steps: int) -> None:
    """Write tokenizer, tokenizer_2, text_encoder and text_encoder_2 under `out`."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer(out / "tokenizer")
    build_tokenizer(out / "tokenizer_2")
    texts = list(all_captions())
    ids, truth = token_ids(tokenizer, texts), torch.tensor([factors(text) for text in texts])
    held_out = torch.tensor([is_held_out(text) for text in texts])
    for folder, width, activation in ENCODERS:
        encoder = build_encoder(tokenizer, width, activation)
        teach(encoder, ids, truth, held_out, steps)
        encoder.half().save_pretrained(out / folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the model's folder, e.g. lssgen/models/demo")
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()
    main(args.out, args.steps)
