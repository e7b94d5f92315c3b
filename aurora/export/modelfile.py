"""An Ollama Modelfile, whose template gives the tokens of the training."""

from typing import TYPE_CHECKING

from aurora.core.messages import PromptName
from aurora.prompt.chat_template import ChatTemplate
from aurora.prompt.mistral import PROMPT_END, PROMPT_START

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def modelfile(file: str, tokenizer: "PreTrainedTokenizerFast", form: PromptName) -> str:
    """An Ollama Modelfile whose template writes what the training wrote; Ollama puts <s> in front by itself."""
    system = ""
    if form == "chat_template":
        chat = ChatTemplate(tokenizer, tokenizer.name_or_path)
        first, question, behind, answer, after = (
            _opening(tokenizer, chat.parts.first),
            "",
            chat.parts.between,
            "",
            chat.parts.after,
        )
        if chat.system_parts:
            before, between = chat.system_parts
            system = f"{_opening(tokenizer, before)}{{{{ $message.Content }}}}{between}"
    else:
        first, question, behind, answer, after = "", PROMPT_START, PROMPT_END, " ", tokenizer.eos_token
    again = f"{{{{ if $i }}}}{tokenizer.bos_token}{{{{ end }}}}" if form == "bos_every_turn" else ""
    # No `{{-`, which would take the white space of the prompt along.
    template = (
        "{{ range $i, $message := .Messages }}"
        f'{{{{ if eq $message.Role "system" }}}}{system}'
        f'{{{{ else if eq $message.Role "user" }}}}{{{{ if eq $i 0 }}}}{first}{{{{ end }}}}'
        f"{again}{question}{{{{ $message.Content }}}}{behind}"
        f'{{{{ else if eq $message.Role "assistant" }}}}{answer}{{{{ $message.Content }}}}{after}{{{{ end }}}}'
        "{{ end }}"
    )
    return (
        f'FROM ./{file}\nTEMPLATE """{template}"""\nPARAMETER stop "{tokenizer.eos_token}"\nPARAMETER temperature 0\n'
    )


def _opening(tokenizer: "PreTrainedTokenizerFast", text: str) -> str:
    """The text that begins a chat, without the token that the runtime puts in front."""
    adds_bos = tokenizer.bos_token and tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]
    return text.removeprefix(tokenizer.bos_token) if adds_bos else text
