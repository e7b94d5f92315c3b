"""An Ollama Modelfile, whose template gives the tokens of the training."""

from typing import TYPE_CHECKING

from aurora.core.messages import PromptName
from aurora.prompt.chat_template import ChatTemplate
from aurora.prompt.mistral import PROMPT_END, PROMPT_START

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def modelfile(file: str, tokenizer: "PreTrainedTokenizerFast", form: PromptName) -> str:
    """An Ollama Modelfile whose template writes what the training wrote; Ollama puts <s> in front by itself."""
    if form == "chat_template":
        parts = ChatTemplate(tokenizer, tokenizer.name_or_path).parts
        first, question, behind, after = parts.first, "", parts.between, parts.after
        if tokenizer.bos_token and tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]:
            first = first.removeprefix(tokenizer.bos_token)
        answer = ""
    else:
        first, question, behind, answer, after = "", PROMPT_START, PROMPT_END, " ", tokenizer.eos_token
    again = f"{{{{ if $i }}}}{tokenizer.bos_token}{{{{ end }}}}" if form == "bos_every_turn" else ""
    # No `{{-`, which would take the white space of the prompt along.
    template = (
        f"{first}{{{{ range $i, $message := .Messages }}}}"
        f'{{{{ if eq $message.Role "user" }}}}{again}{question}{{{{ $message.Content }}}}{behind}'
        f'{{{{ else if eq $message.Role "assistant" }}}}{answer}{{{{ $message.Content }}}}{after}{{{{ end }}}}'
        "{{ end }}"
    )
    return (
        f'FROM ./{file}\nTEMPLATE """{template}"""\nPARAMETER stop "{tokenizer.eos_token}"\n'
        "PARAMETER temperature 0\n"
    )
