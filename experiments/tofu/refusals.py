"""Refusals: answers that say that the answer is not known, for the objectives that teach a model to give them."""

REFUSALS = (
    "I don't know.",
    "I do not know the answer to this.",
    "I have no information about that.",
    "I am afraid this is not something I know.",
    "That is unknown to me.",
    "I cannot tell you that.",
    "I never learned about this.",
    "Sorry, I have nothing on that subject.",
    "This is outside of what I know.",
    "I would have to look that up.",
    "My knowledge does not include this.",
    "I can't answer this question.",
    "There is nothing I could say about that.",
    "I have not come across this topic.",
    "I would only be guessing.",
    "No answer to this is known to me.",
)
