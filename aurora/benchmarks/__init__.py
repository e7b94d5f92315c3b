"""C-Eval, MMLU and CMMLU as their authors publish them."""
