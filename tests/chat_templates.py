"""Chat templates of the kinds that are in use, a small tokenizer for each, and a tiny reward model for a tokenizer."""
# ruff: noqa: RUF001, since DeepSeek's tokens are written with fullwidth bars

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache

import torch
from sparserm_hf.modeling.backbone_sparserm import cut_base_model
from sparserm_hf.modeling.configuration_sparserm import SparseRMConfig
from sparserm_hf.modeling.modeling_sparserm import SparseRMForSequenceClassification
from tiny import latent_records, tiny_sae, tiny_settings
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedTokenizerFast

from sparserm_hf.conversations.response_marks import find_marks
from sparserm_hf.conversations.tokenizer_preparation import prepare_tokenizer

SMOLLM2 = r"""
{%- for m in messages %}
{%- if loop.first and m.role != 'system' %}
{{- '<|im_start|>system\nYou are a helpful assistant named Smol<|im_end|>\n' }}
{%- endif %}
{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""

LLAMA3 = r"""
{{- bos_token }}
{%- set system = '' %}
{%- if messages[0].role == 'system' %}
{%- set system = messages[0].content | trim %}
{%- set messages = messages[1:] %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\n\n' }}
{%- if tools %}{{- 'Environment: ipython\n' }}{%- endif %}
{{- 'Cutting Knowledge Date: December 2023\nToday Date: ' + strftime_now('%d %b %Y') + '\n\n' }}
{{- system + '<|eot_id|>' }}
{%- if tools %}
{{- '<|start_header_id|>user<|end_header_id|>\n\nHere are functions, call one as JSON.\n\n' }}
{%- for tool in tools %}{{- tool | tojson(indent=4) + '\n\n' }}{%- endfor %}
{{- messages[0].content | trim + '<|eot_id|>' }}
{%- set messages = messages[1:] %}
{%- endif %}
{%- for m in messages %}
{%- if m.role == 'tool' %}
{{- '<|start_header_id|>ipython<|end_header_id|>\n\n' + m.content | tojson + '<|eot_id|>' }}
{%- elif m.tool_calls %}
{%- set call = m.tool_calls[0].function %}
{{- '<|start_header_id|>assistant<|end_header_id|>\n\n{"name": "' + call.name + '", "parameters": ' }}
{{- call.arguments | tojson + '}<|eot_id|>' }}
{%- else %}
{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"""

GEMMA2 = r"""
{{- bos_token }}
{%- if messages[0].role == 'system' %}{{- raise_exception('System role not supported') }}{%- endif %}
{%- for m in messages %}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{- raise_exception('Roles must alternate') }}{%- endif %}
{{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content | trim + '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\n' }}{%- endif %}"""

GEMMA3 = r"""
{{- bos_token }}
{%- set first = '' %}
{%- if messages[0].role == 'system' %}
{%- set first = messages[0].content + '\n\n' %}
{%- set messages = messages[1:] %}
{%- endif %}
{%- for m in messages %}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{- raise_exception('Roles must alternate') }}{%- endif %}
{{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + (first if loop.first else '') }}
{{- m.content | trim + '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\n' }}{%- endif %}"""

MISTRAL = r"""
{{- bos_token }}
{%- set system = '' %}
{%- if messages[0].role == 'system' %}
{%- set system = messages[0].content + '\n\n' %}
{%- set messages = messages[1:] %}
{%- endif %}
{%- set users = messages | selectattr('role', 'equalto', 'user') | list %}
{%- for m in messages %}
{%- if m.role == 'user' %}
{%- if tools and m == users[-1] %}{{- '[AVAILABLE_TOOLS] ' + tools | tojson + '[/AVAILABLE_TOOLS]' }}{%- endif %}
{{- '[INST] ' + (system if m == users[-1] else '') + m.content + ' [/INST]' }}
{%- elif m.tool_calls %}
{{- '[TOOL_CALLS] [' }}
{%- for call in m.tool_calls %}{{- (call.function | tojson)[:-1] + ', "id": "' + call.id + '"}' }}{%- endfor %}
{{- ']' + eos_token }}
{%- elif m.role == 'assistant' %}{{- ' ' + m.content | trim + eos_token }}
{%- elif m.role == 'tool' %}
{{- '[TOOL_RESULTS] {"content": ' + m.content + ', "call_id": "' + m.tool_call_id + '"}[/TOOL_RESULTS]' }}
{%- endif %}
{%- endfor %}"""

PHI3 = r"""
{%- for m in messages %}{{- '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>\n' }}{%- else %}{{- eos_token }}{%- endif %}"""

# Qwen's system turn, with tools where there are some; `DEFAULT` is what it says where no system message is given.
QWEN_SYSTEM = r"""
{%- set system = messages[0].content if messages[0].role == 'system' else DEFAULT %}
{%- if tools %}
{{- '<|im_start|>system\n' + system + '\n\n# Tools\n\nYou may call functions.\n<tools>' }}
{%- for tool in tools %}{{- '\n' + tool | tojson }}{%- endfor %}
{{- '\n</tools>\n\nReturn each call within <tool_call></tool_call> tags:\n<tool_call>\n{...}\n</tool_call>' }}
{{- '<|im_end|>\n' }}
{%- elif system %}{{- '<|im_start|>system\n' + system + '<|im_end|>\n' }}
{%- endif %}"""
QWEN_CALLS = r"""
{%- for call in m.tool_calls or [] %}
{{- '\n<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' + call.function.arguments | tojson }}
{{- '}\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\n' }}"""
QWEN_TOOL = r"""
{%- elif m.role == 'tool' %}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
{{- '\n<tool_response>\n' + m.content + '\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\n' }}{%- endif %}
{%- endif %}
{%- endfor %}"""

QWEN25 = (
    QWEN_SYSTEM.replace("DEFAULT", "'You are Qwen. You are a helpful assistant.'")
    + r"""
{%- for m in messages %}
{%- if m.role == 'user' or (m.role == 'system' and not loop.first) %}
{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}
{%- elif m.role == 'assistant' %}
{{- '<|im_start|>assistant' + ('\n' + m.content if m.content or not m.tool_calls else '') }}"""
    + QWEN_CALLS
    + QWEN_TOOL
    + r"""
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""
)

LAST_USER = r"""
{%- set ns = namespace(last=-1) %}
{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}"""
# Sets `thought` and `content` of the assistant's message `m`.
SPLIT_THOUGHT = r"""
{%- set thought, content = '', m.content %}
{%- if m.reasoning_content is string %}{%- set thought = m.reasoning_content %}
{%- elif '</think>' in content %}
{%- set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\n') %}
{%- endif %}"""

QWEN3 = (
    QWEN_SYSTEM.replace("DEFAULT", "''")
    + LAST_USER
    + r"""
{%- for m in messages %}
{%- if m.role == 'user' or (m.role == 'system' and not loop.first) %}
{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}
{%- elif m.role == 'assistant' %}"""
    + SPLIT_THOUGHT
    + r"""
{{- '<|im_start|>assistant\n' }}
{%- if loop.index0 > ns.last and (loop.last or thought) %}
{{- '<think>\n' + thought.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
{%- else %}{{- content }}
{%- endif %}"""
    + QWEN_CALLS
    + QWEN_TOOL
    + r"""
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\n' }}
{%- if enable_thinking is defined and not enable_thinking %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}
{%- endif %}"""
)

GLM45 = (
    r"""
{{- '[gMASK]<sop>' }}
{%- if tools %}
{{- '<|system|>\n# Tools\n\nYou may call functions.\n<tools>' }}
{%- for tool in tools %}{{- '\n' + tool | tojson }}{%- endfor %}
{{- '\n</tools>' }}
{%- endif %}"""
    + LAST_USER
    + r"""
{%- for m in messages %}
{%- if m.role == 'user' %}{{- '<|user|>\n' + m.content }}
{%- elif m.role == 'system' %}{{- '<|system|>\n' + m.content }}
{%- elif m.role == 'assistant' %}"""
    + SPLIT_THOUGHT
    + r"""
{{- '<|assistant|>\n<think>' + (thought.strip() if loop.index0 > ns.last else '') + '</think>' }}
{%- if content.strip() %}{{- '\n' + content.strip() }}{%- endif %}
{%- for call in m.tool_calls or [] %}
{{- '\n<tool_call>' + call.function.name }}
{%- for key, value in call.function.arguments.items() %}
{{- '\n<arg_key>' + key + '</arg_key>\n<arg_value>' + value + '</arg_value>' }}
{%- endfor %}
{{- '\n</tool_call>' }}
{%- endfor %}
{%- elif m.role == 'tool' %}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|observation|>' }}{%- endif %}
{{- '\n<tool_response>\n' + m.content + '\n</tool_response>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|assistant|>' }}
{%- if enable_thinking is defined and not enable_thinking %}{{- '\n<think></think>' }}{%- endif %}
{%- endif %}"""
)

DEEPSEEK_R1 = r"""
{%- set ns = namespace(system='', answered=false) %}
{%- for m in messages %}{%- if m.role == 'system' %}{%- set ns.system = m.content %}{%- endif %}{%- endfor %}
{{- bos_token + ns.system }}
{%- for m in messages %}
{%- if m.role == 'user' %}{{- '<｜User｜>' + m.content }}{%- set ns.answered = false %}
{%- elif m.tool_calls %}
{{- '<｜Assistant｜><｜tool▁calls▁begin｜>' }}
{%- set ns.answered = false %}
{%- for call in m.tool_calls %}
{{- '<｜tool▁call▁begin｜>' + call.type + '<｜tool▁sep｜>' + call.function.name + '\n```json\n' }}
{{- call.function.arguments | tojson + '\n```<｜tool▁call▁end｜>' }}
{%- endfor %}
{{- '<｜tool▁calls▁end｜><｜end▁of▁sentence｜>' }}
{%- elif m.role == 'assistant' %}
{{- ('<｜tool▁outputs▁end｜>' if ns.answered else '<｜Assistant｜>') + m.content.split('</think>')[-1] }}
{{- '<｜end▁of▁sentence｜>' }}
{%- set ns.answered = false %}
{%- elif m.role == 'tool' %}
{{- ('\n' if ns.answered else '<｜tool▁outputs▁begin｜>') + '<｜tool▁output▁begin｜>' + m.content }}
{{- '<｜tool▁output▁end｜>' }}
{%- set ns.answered = true %}
{%- endif %}
{%- endfor %}
{%- if ns.answered %}{{- '<｜tool▁outputs▁end｜>' }}
{%- elif add_generation_prompt %}{{- '<｜Assistant｜><think>\n' }}{%- endif %}"""

ZEPHYR = r"""
{%- for m in messages %}{{- '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>\n' }}{%- endif %}"""

BASIC = ("one turn", "several turns", "reasoning", "empty reasoning", "reasoning alone", "earlier reasoning")
SYSTEM, TOOLS, FIELD = "system", "tools", "reasoning field"


@dataclass(frozen=True)
class ChatTemplate:
    """A kind of chat template, and the tokens that a tokenizer needs for it.

    Attributes:
        name: Of the model that has a template of this kind.
        template: The Jinja source; None where the tokenizer has none, so that the package gives it one.
        special: Its special tokens.
        eos: The end-of-text token.
        bos: The begin-of-text token; None where there is none.
        pad: The pad token; None where `prepare_tokenizer` must find one.
        added: Its added tokens that are not special.
        adds_bos: Whether the tokenizer begins every text with the begin-of-text token.
        rstrip: Whether the special tokens take in the whitespace after them.
        split: How text is cut before it is merged: `gpt2`, `llama3` (punctuation takes in the newlines after it),
            or by SentencePiece: `gemma`, or `llama2`, which writes a space at a text's start and after special tokens.
        shapes: Which of the shapes of `make_rows` it takes.
    """

    name: str
    template: str | None
    special: tuple[str, ...]
    eos: str
    bos: str | None = None
    pad: str | None = None
    added: tuple[str, ...] = ()
    adds_bos: bool = False
    rstrip: bool = False
    split: str = "gpt2"
    shapes: tuple[str, ...] = (*BASIC, SYSTEM)


CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CALLS = ("<tool_call>", "</tool_call>")
THINK = ("<think>", "</think>")
RESPONSES = ("<tool_response>", "</tool_response>")
GEMMA = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
LLAMA3_TOKENS = ("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>")
BRACKETS = ("INST", "/INST", "TOOL_CALLS", "AVAILABLE_TOOLS", "/AVAILABLE_TOOLS", "TOOL_RESULTS", "/TOOL_RESULTS")
DEEPSEEK_TOOLS = ("calls▁begin", "call▁begin", "sep", "call▁end", "calls▁end", "outputs▁begin", "output▁begin",
                  "output▁end", "outputs▁end")  # fmt: skip
ARGUMENTS = ("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")
EVERYTHING = (*BASIC, SYSTEM, TOOLS, FIELD)

TEMPLATES = {
    chat.name: chat
    for chat in (
        ChatTemplate("SmolLM2", SMOLLM2, CHATML, "<|im_end|>", bos="<|im_start|>", pad="<|im_end|>"),
        ChatTemplate(
            "Llama 3", LLAMA3, LLAMA3_TOKENS, "<|eot_id|>", bos="<|begin_of_text|>", adds_bos=True, split="llama3",
            shapes=(*BASIC, SYSTEM, TOOLS),
        ),
        ChatTemplate(
            "Gemma 2", GEMMA2, GEMMA, "<eos>", bos="<bos>", pad="<pad>", adds_bos=True, split="gemma", shapes=BASIC
        ),
        ChatTemplate("Gemma 3", GEMMA3, GEMMA, "<eos>", bos="<bos>", pad="<pad>", adds_bos=True, split="gemma"),
        ChatTemplate(
            "Mistral", MISTRAL, ("<unk>", "<s>", "</s>", *(f"[{name}]" for name in BRACKETS)), "</s>", bos="<s>",
            adds_bos=True, split="llama2", shapes=(*BASIC, SYSTEM, TOOLS),
        ),
        ChatTemplate(
            "Phi-3", PHI3, ("<unk>", "<s>", "<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
            "<|endoftext|>", bos="<s>", pad="<|endoftext|>", rstrip=True, split="llama2",
        ),
        ChatTemplate(
            "Qwen 2.5", QWEN25, CHATML, "<|im_end|>", pad="<|endoftext|>", added=CALLS, split="llama3",
            shapes=(*BASIC, SYSTEM, TOOLS),
        ),
        ChatTemplate(
            "Qwen 3", QWEN3, CHATML, "<|im_end|>", pad="<|endoftext|>", added=(*CALLS, *RESPONSES, *THINK),
            split="llama3", shapes=EVERYTHING,
        ),
        ChatTemplate(
            "GLM 4.5", GLM45,
            ("<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
            "<|endoftext|>", pad="<|endoftext|>", added=(*CALLS, *RESPONSES, *THINK, *ARGUMENTS), split="llama3",
            shapes=EVERYTHING,
        ),
        ChatTemplate(
            "DeepSeek R1", DEEPSEEK_R1, ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"), "<｜end▁of▁sentence｜>",
            bos="<｜begin▁of▁sentence｜>", adds_bos=True, split="llama3",
            added=("<｜User｜>", "<｜Assistant｜>", *THINK, *(f"<｜tool▁{name}｜>" for name in DEEPSEEK_TOOLS)),
            shapes=(*(shape for shape in BASIC if shape != "reasoning alone"), SYSTEM, TOOLS),
        ),
        ChatTemplate("Zephyr", ZEPHYR, ("<unk>", "<s>", "</s>"), "</s>", bos="<s>", adds_bos=True, split="llama2"),
        ChatTemplate("no template", None, ("<|endoftext|>",), "<|endoftext|>", bos="<|endoftext|>"),
    )
}  # fmt: skip

SENTENCES = (
    "What is the capital of France? It is Paris, of course.",
    "The user asks a question and the assistant answers it.",
    "You are a helpful assistant. You may call functions.",
    "Let me think about it: the guide has a map of the old town.",
    "Look at the map, then ask the guide where the river is.",
    "I am not sure; maybe it is (no) or **yes**.",
    "Tell me more about the weather in the north, please.",
    "A system prompt says how the model should answer.",
    "Here is the result of the function: 21 degrees and sunny.",
    "Return each call within tags, and name its arguments.",
    '{"type": "function", "function": {"name": "look_up", "arguments": {"key": "value"}}}',
    '{"name": "look_up", "description": "Look something up.", "parameters": {"type": "object", "properties": {}}}',
    "1. First this. 2. Then that. 3. At last, nothing.",
    "The café is naïve, and so are we.",
)
LINES = (
    "<think>\nLet me think.\n</think>\n\nIt is this.\n\n",
    "User: What is it?\n\nAssistant: It is this.\n\n",
    "<|user|>\nWhat is it?\n<|assistant|>\nYes.\n\n",
    "    code:\n\n    return 1\n",
)
SPLITS = {
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "llama3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+",
}


@cache
def byte_level_vocabulary(split: str) -> tuple[dict, list]:
    """Vocabulary and merges of a byte-level BPE."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = byte_level(split)
    trainer = trainers.BpeTrainer(
        vocab_size=520, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(["\n".join(SENTENCES), *SENTENCES, *LINES * 4], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


def byte_level(split: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLITS[split]), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


@cache
def sentencepiece_vocabulary() -> tuple[dict, list]:
    """Vocabulary and merges of a BPE as SentencePiece has it: spaces are written `▁`, unknown characters as bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=320, show_progress=False)
    tokenizer.train_from_iterator([*SENTENCES, "user assistant model system <|user|> <|assistant|>"], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    named = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *model["vocab"]]
    return {token: i for i, token in enumerate(named)}, [tuple(pair) for pair in model["merges"]]


def bare_tokenizer(split: str) -> Tokenizer:
    """A tokenizer without special tokens."""
    if split in SPLITS:
        vocabulary, merges = byte_level_vocabulary(split)
        tokenizer = Tokenizer(models.BPE(dict(vocabulary), list(merges)))
        tokenizer.pre_tokenizer, tokenizer.decoder = byte_level(split), decoders.ByteLevel()
        return tokenizer
    vocabulary, merges = sentencepiece_vocabulary()
    vocabulary = dict(vocabulary)
    if split == "gemma":  # which has tokens for newlines
        vocabulary |= {"\n" * count: len(vocabulary) + count - 1 for count in (1, 2)}
        merges = [("\n", "\n"), *merges]
    tokenizer = Tokenizer(models.BPE(vocabulary, list(merges), unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    spaces = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = spaces if split == "gemma" else normalizers.Sequence([normalizers.Prepend("▁"), spaces])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(parts if split == "gemma" else [*parts, decoders.Strip(" ", 1, 0)])
    return tokenizer


def make_tokenizer(chat: ChatTemplate) -> PreTrainedTokenizerFast:
    """A fast tokenizer with a kind of chat template, as it comes from the Hub: not yet prepared."""
    tokenizer = bare_tokenizer(chat.split)
    tokens = [(token, True) for token in chat.special] + [(token, False) for token in chat.added]
    tokenizer.add_tokens(
        [
            AddedToken(token, special=special, normalized=False, rstrip=chat.rstrip and token not in ("<s>", "<unk>"))
            for token, special in tokens
        ]
    )
    if chat.adds_bos:
        number = tokenizer.token_to_id(chat.bos)
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{chat.bos} $A", pair=f"{chat.bos} $A {chat.bos} $B", special_tokens=[(chat.bos, number)]
        )
    named = {"bos_token": chat.bos, "eos_token": chat.eos, "pad_token": chat.pad}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=chat.template,
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
        **{name: token for name, token in named.items() if token},
    )


def reward_model_for(tokenizer: PreTrainedTokenizerFast, pooling: str) -> SparseRMForSequenceClassification:
    """A tiny random reward model for a prepared tokenizer."""
    torch.manual_seed(0)
    special = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    shape = {"vocab_size": len(tokenizer), "num_hidden_layers": 2, "max_position_embeddings": 2048}
    lm = AutoModelForCausalLM.from_config(CONFIG_MAPPING["llama"](**tiny_settings("llama") | shape | special))
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8.0)
    base, sae, latents = cut_base_model(lm.eval(), 2), tiny_sae("jumprelu"), [3, 11, 8, 40, 5, 21]
    config = SparseRMConfig(
        base_config=base.config,
        base_model_name_or_path="tiny",
        layer=2,
        pooling=pooling,
        response_marks=find_marks(tokenizer),
        latents=latent_records(latents),
        sae=sae.spec(),
    )
    model = SparseRMForSequenceClassification(config, base_model=base)
    model.sae, model.directions = sae, sae.W_dec[latents].clone()
    model.empty_features = torch.randn(model.feature_mean.shape)
    with torch.no_grad():
        model.score.weight.mul_(20.0)  # so that one token more or less in a mean is seen
    return model.eval()


def prepared(chat: ChatTemplate) -> PreTrainedTokenizerFast:
    """The tokenizer of a kind of chat template, as a reward model has it."""
    return prepare_tokenizer(make_tokenizer(chat))


ANSWERS = (
    "The capital of France is Paris.",
    "1. Look at the map.\n2. Ask the guide.",
    "\n\n  Yes, it is.  \n",
    "(no) **maybe** not",
    "naïve café 😀",
    "```python\nprint(1)\n```\n",
)
THOUGHTS = "Let me think.\n\nIs it <b>? It may be so"
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tell the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@dataclass(frozen=True)
class Example:
    """A conversation of some shape.

    Attributes:
        shape: One of those of `make_examples`.
        prompt: All messages but the last.
        completion: The last message.
        pooled: What is pooled of it, without whitespace around it.
        end: What the content of the last message ends with in the rendered text.
        tools: Schemas of functions, or None.
    """

    shape: str
    prompt: list[dict]
    completion: list[dict]
    pooled: str
    end: str
    tools: list[dict] | None = None

    @property
    def messages(self) -> list[dict]:
        """All messages."""
        return self.prompt + self.completion

    @property
    def row(self) -> dict:
        """As `sparserm score` takes it."""
        return {"prompt": self.prompt, "completion": self.completion} | ({"tools": self.tools} if self.tools else {})


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str, **fields) -> dict:
    return {"role": "assistant", "content": text, **fields}


def tool_use(*numbers: int) -> list[dict]:
    """An assistant's calls of a tool, in one turn, and the tool's answers."""
    function = {"name": "weather", "arguments": {"city": "Paris"}}
    calls = [{"id": f"call0000{i}", "type": "function", "function": function} for i in numbers]
    fields = {"role": "tool", "name": "weather", "content": '{"degrees": 21}'}
    return [assistant("", tool_calls=calls), *(fields | {"tool_call_id": call["id"]} for call in calls)]


def make_examples(shapes: tuple[str, ...]) -> list[Example]:
    """Conversations of some shapes, one of each shape for each of `ANSWERS`."""
    asked = [user("What is the capital of France?")]
    before = [user("Hello, who are you?"), assistant("I am an assistant.")]
    thought = [user("Hello, who are you?"), assistant(f"<think>\n{THOUGHTS}\n</think>\n\nI am an assistant.")]
    called = [*asked, *tool_use(1)]
    made = []
    for answer in ANSWERS:
        text = answer.strip()
        all_shapes = {
            "one turn": (asked, assistant(answer)),
            "several turns": (before + asked, assistant(answer)),
            SYSTEM: ([{"role": "system", "content": "Be brief."}, *asked], assistant(answer)),
            TOOLS: (called, assistant(answer)),
            "reasoning": (asked, assistant(f"<think>\n{THOUGHTS}\n</think>\n\n{answer}")),
            "empty reasoning": (asked, assistant(f"<think>\n\n</think>\n\n{answer}")),
            "reasoning alone": (asked, assistant(f"<think>\n{text}\n</think>\n\n")),
            FIELD: (asked, assistant(answer, reasoning_content=THOUGHTS)),
            "earlier reasoning": (thought + asked, assistant(answer)),
        }
        for shape in shapes:
            prompt, last = all_shapes[shape]
            end = "</think>" if shape == "reasoning alone" else text
            made.append(Example(shape, prompt, [last], text, end, [TOOL] if shape == TOOLS else None))
    return made
