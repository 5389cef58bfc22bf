"""A causal language model, its tokenizer and its data, built on the spot: nothing is downloaded.

Imported by the training scripts of `test_trainers.py`, which run in processes of their own.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch.distributed
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

WORDS = "the a cat dog bird sees hears likes one two small red old house tree".split()
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
HIDDEN_SIZE = 16


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(WordLevel({word: i for i, word in enumerate((*SPECIAL, *WORDS))}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    pad, bos, eos, unk = SPECIAL
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token=pad, bos_token=bos, eos_token=eos, unk_token=unk)


def model() -> LlamaForCausalLM:
    """Two layers; the same weights each time."""
    set_seed(1)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(SPECIAL) + len(WORDS),
            hidden_size=HIDDEN_SIZE,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=64,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


def seeing_model() -> tuple[Any, Any]:
    """A model that reads pictures of 8 x 8 pixels and text, and its processor."""
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    words = tokenizer()
    words.add_special_tokens({"additional_special_tokens": ["<image>"]})
    words.chat_template = (
        "{% for message in messages %}{% if message.content is string %}{{ message.content }} {% else %}"
        "{% for part in message.content %}{% if part.type == 'image' %}<image> {% else %}{{ part.text }} {% endif %}"
        "{% endfor %}{% endif %}{% endfor %}"
    )
    size = {"height": 8, "width": 8}
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size=size), tokenizer=words, patch_size=4,
        vision_feature_select_strategy="default", num_additional_image_tokens=1, chat_template=words.chat_template,
    )  # fmt: skip
    text = model().config
    text.vocab_size = len(words)
    vision = CLIPVisionConfig(
        hidden_size=HIDDEN_SIZE, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=8,
        patch_size=4,
    )  # fmt: skip
    image_token = words.convert_tokens_to_ids("<image>")
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=image_token, vision_feature_layer=-1)
    return LlavaForConditionalGeneration(config), processor


def texts(count: int = 32) -> list[dict[str, str]]:
    return [{"text": " ".join(WORDS[(i * 7 + j * j) % len(WORDS)] for j in range(8))} for i in range(count)]


def tokens(count: int = 32) -> list[dict[str, list[int]]]:
    """The texts as a plain `Trainer` takes them."""
    encode = tokenizer()
    rows = [encode(row["text"])["input_ids"] for row in texts(count)]
    return [{"input_ids": row, "labels": row} for row in rows]


def prompts(count: int = 16) -> list[dict[str, str]]:
    """The beginnings of the texts, which a model completes."""
    return [{"prompt": " ".join(row["text"].split()[:4])} for row in texts(count)]


def different_words(completions: list[str], **_: Any) -> list[float]:
    """A reward for completions: how many different words each has."""
    return [float(len(set(completion.split()))) for completion in completions]


def leave() -> None:
    """How a rank that trained with others is to end: gloo's threads may hold tensors still, and abort the process
    when the interpreter ends (pytorch/pytorch#179291), even if the group was destroyed. So it does not end."""
    import trackio

    torch.distributed.barrier()
    trackio.finish()
    sys.stdout.flush()
    os._exit(0)


def report(path: str, **facts: Any) -> None:
    """Hands the test what the training itself says happened. Floats keep every bit in JSON."""
    Path(path).write_text(json.dumps(facts))
