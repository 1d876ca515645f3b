"""Turn rows of any form into conversations, and conversations into token ids with the place of the response.

Files by question:
    How are rows loaded?                          `data_files`, `data_sources`
    Which texts does a row hold?                  `row_texts`, `preferences` for pairs, `sae_texts` for an SAE
    What is checked?                              `messages` for lists of messages, `row_checks` for single fields
    How is a conversation rendered?               `chat_templates`, `template_renderer`, `template_process`
    What does a template write around contents?   `chat_format` as text, `response_marks` as token ids
    How does a text become token ids?             `encoding`, `tokenized_preferences` for pairs with `pair_groups`
    How is a tokenizer prepared?                  `tokenizer_preparation`
    How are tokens shown, and styles measured?    `turns`, `token_texts`, `response_styles`
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
