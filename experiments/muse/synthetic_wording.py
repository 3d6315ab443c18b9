"""The sentences of the built-in news articles and the questions of their quizzes.

Braces name facts of the article, or words of synthetic_tables.WORDS, which are drawn for each sentence.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """A kind of event.

    Attributes:
        name: what articles and questions call it.
        headlines, leads: first lines and first sentences; each names the town and does without the facts.
        colours: sentences that only an article of this kind has.
    """

    name: str
    headlines: tuple[str, ...]
    leads: tuple[str, ...]
    colours: tuple[str, ...]


@dataclass(frozen=True)
class Fact:
    """A fact that each article states.

    Attributes:
        name: of the fact.
        sentences: how an article states it.
        questions: how a quiz asks for it. Each ends with the town, which a small model then has at hand when it answers.
    """

    name: str
    sentences: tuple[str, ...]
    questions: tuple[str, ...]


EVENTS = (
    Event(
        "boat race",
        ("Oars out in {town}", "{town} crews take to the water", "A wet finish at {town}"),
        (
            "Crews from along the river met in {town} for a boat race that was decided by the length of an oar.",
            "The boat race in {town} ended with {number} crews in the reeds and a dispute over the finishing line.",
            "Nobody in {town} slept late when the boat race came through under {weather}.",
        ),
        (
            "The {trade} in the last boat bailed with a saucepan and was cheered all the way past {spot}.",
            "Two coxes collided near {spot} and finished arm in arm.",
            "A protest about a short oar was thrown out after {number} minutes.",
            "The winning crew trained in {weather} since spring and ate little but {food}.",
        ),
    ),
    Event(
        "seed fair",
        ("Beans and barter in {town}", "{town} swaps its seeds", "Growers fill {town}"),
        (
            "Gardeners carried jars, tins and envelopes to the seed fair in {town} and few went home with what they brought.",
            "A seed fair in {town} has settled, for this year at least, the quarrel over the long purple carrot.",
            "Old bean varieties changed hands by the spoonful when {town} held a seed fair.",
        ),
        (
            "The {trade} who brought a black tomato refused {number} offers for it.",
            "Judges counted the sprouts of each tray by {spot} and then counted them again.",
            "A packet marked only with a drawing of {thing} went to the highest bidder.",
            "Somebody had mixed up the kale and the cress, and {group} spent an hour sorting them.",
        ),
    ),
    Event(
        "choir night",
        ("Full voices at {town}", "{town} sings until late", "Altos carry the evening in {town}"),
        (
            "A choir night in {town} ran an hour over because nobody would leave after the last song.",
            "The windows shook when {number} choirs shared one stage for the choir night in {town}.",
            "The people of {town} will hum for weeks after a choir night that began with a power cut.",
        ),
        (
            "The tenors lost their place in the second psalm and a {trade} sang them back in.",
            "A shanty about {thing} had to be sung twice.",
            "The organ stayed silent, for a family of mice lives in it.",
            "Two basses with colds were replaced by {group} at short notice.",
        ),
    ),
    Event(
        "bridge repair",
        ("New planks for {town}", "{town} bridge is whole again", "Scaffold comes down in {town}"),
        (
            "The bridge repair in {town} is over and the first cart to cross carried {thing}.",
            "After {number} weeks of detours the bridge repair in {town} has come to its end.",
            "Carts are rolling in {town} again, now that the bridge repair has been signed off.",
        ),
        (
            "Divers found {thing} wedged under the middle pier.",
            "The old planks were given to {group} for firewood.",
            "A {trade} had kept count of the missed ferries and read out the total.",
            "The railing is painted a shade that the plans call mustard and the neighbours do not.",
        ),
    ),
    Event(
        "clock auction",
        ("Ticking lots in {town}", "Hammer falls on {town} clocks", "{town} sells its time"),
        (
            "Dealers and dreamers filled a cold room for the clock auction in {town}.",
            "A clock auction in {town} began late, which the auctioneer blamed on the goods.",
            "The clock auction in {town} emptied an attic that had not been opened for {number} decades.",
        ),
        (
            "The cuckoo of lot {number} would not stop and was carried out to {spot}.",
            "A {trade} bid against himself twice before he noticed.",
            "One dial, painted with {thing}, went to a caller who gave no name.",
            "A pocket watch turned up inside a loaf that had been meant for {group}.",
        ),
    ),
    Event(
        "flood drill",
        ("Sandbags stacked in {town}", "{town} practises for high water", "Sirens, but no water, at {town}"),
        (
            "Sirens woke {town} for a flood drill that sent whole streets uphill with their cats.",
            "The flood drill in {town} went well except for {thing} that blocked the only road out.",
            "With the river low and the mood high, {town} rehearsed the worst in a flood drill.",
        ),
        (
            "One boat was lowered on the wrong side of {spot}.",
            "The {trade} who played a casualty fell asleep on the stretcher.",
            "Sandbags were passed along a chain of {group} in under {number} minutes.",
            "A loudspeaker repeated the recipe for {food} instead of the warning.",
        ),
    ),
    Event(
        "chess evening",
        ("Checkmate in {town}", "{town} bends over its boards", "A long endgame at {town}"),
        (
            "The chess evening in {town} was won by a pawn that nobody had looked at for an hour.",
            "There was not a free chair left in {town} once the chess evening had begun.",
            "Silence fell over {town} for a chess evening with {number} boards and a single clock.",
        ),
        (
            "A {trade} offered a draw, took it back and lost.",
            "One bishop was missing and {thing} stood in for it.",
            "The youngest player beat {number} members of the {group} in a row.",
            "Play stopped once, when the smell of {food} came in from {spot}.",
        ),
    ),
    Event(
        "kite contest",
        ("Strings tangle over {town}", "{town} looks up", "High fliers at {town}"),
        (
            "The sky over {town} was full of paper and cane for a kite contest in {weather}.",
            "A kite contest in {town} left {number} tails in the trees and one on the weathercock.",
            "It took only a breath of wind for the kite contest in {town} to get off the ground.",
        ),
        (
            "A kite in the shape of {thing} took first place for looks.",
            "The {trade} with the longest line lost sight of his kite beyond {spot}.",
            "Judges on a hay wagon marked each dive from one to {number}.",
            "A dragon built by {group} tore in half and flew on as two.",
        ),
    ),
    Event(
        "bread market",
        ("Loaves sell out in {town}", "{town} rises early", "Crust and crumb at {town}"),
        (
            "By breakfast the bread market in {town} had sold every loaf and started on the flour.",
            "The bread market in {town} drew bakers from {number} valleys and a good many ducks.",
            "Ovens glowed all night before {town} opened a bread market to anyone with a basket.",
        ),
        (
            "A rye wheel as wide as {thing} had to be rolled in past {spot}.",
            "The prize for the darkest crust went to a {trade}.",
            "A dispute over sourdough was settled by {group} with a bread knife.",
            "Crumbs were swept up for the hens by {hour}.",
        ),
    ),
    Event(
        "council hearing",
        ("Raised voices in {town}", "{town} hears both sides", "A full gallery at {town}"),
        (
            "A council hearing in {town} on the future of {spot} ended without a vote and with a broken chair.",
            "The council hearing in {town} had {number} points on its paper and reached the second.",
            "Both sides claimed the day after a council hearing in {town} about {matter}.",
        ),
        (
            "A petition signed by {group} was handed over in a biscuit tin.",
            "The {trade} in the gallery was asked to put away {thing}.",
            "A motion to adjourn failed by one vote and passed by one vote {number} minutes later.",
            "The minutes record a long silence after a remark about {matter}.",
        ),
    ),
)

FACTS = (
    Fact(
        "chief",
        (
            "{chief} was in charge from start to finish.",
            "Everything was led by {chief}, who is new to the task.",
            "At the head of it all stood {chief}, with a clipboard and a cold.",
            "The person to ask was {chief}, who led the whole affair.",
            "It fell to {chief} to run things this time.",
            "Neighbours put the good order down to {chief}, its leader.",
        ),
        (
            "Who led the event in {town}?",
            "Which person was in charge in {town}?",
            "Who ran things in {town}?",
        ),
    ),
    Fact(
        "cost",
        (
            "The bill came to {cost}.",
            "All told, {cost} were spent.",
            "The treasurer put the cost at {cost} and asked for no questions.",
            "It was not cheap: {cost}, according to the books.",
            "A sum of {cost} went on it, much of that on {food}.",
            "Accounts pinned up near {spot} show a cost of {cost}.",
        ),
        (
            "How much was spent in {town}?",
            "What was the bill in {town}?",
            "What did it cost in {town}?",
        ),
    ),
    Fact(
        "day",
        (
            "The date, {day}, had been fixed a year ahead.",
            "It all took place on {day}.",
            "On {day} the doors stood open from {hour}.",
            "The diary of the parish gives the day as {day}.",
            "Many had kept {day} free for months.",
            "It was {day}, and there was {weather}.",
        ),
        (
            "When was the event in {town}?",
            "What was the date in {town}?",
            "Which day was it in {town}?",
        ),
    ),
    Fact(
        "street",
        (
            "People lined {street} from end to end.",
            "The place chosen was {street}, just behind {spot}.",
            "Traffic was kept out of {street} until {hour}.",
            "It happened in {street}, where the cobbles are worst.",
            "Anyone who lives in {street} had the best view.",
            "Trestles went up in {street} the night before.",
        ),
        (
            "Where was the event in {town}?",
            "Which street was chosen in {town}?",
            "What was the place in {town}?",
        ),
    ),
    Fact(
        "count",
        (
            "A count at the gate gave {count}.",
            "In all {count} came.",
            "The crowd of {count} stayed until {hour}.",
            "With {count} through the gate, the wardens ran out of badges.",
            "There were {count}, and some of them were {group}.",
            "Attendance was put at {count}.",
        ),
        (
            "How many people came in {town}?",
            "What was the attendance in {town}?",
            "How large was the crowd in {town}?",
        ),
    ),
    Fact(
        "firm",
        (
            "The sponsor was {firm}, whose flags hung from {spot}.",
            "Money came from {firm} and from a raffle.",
            "A grant by {firm} covered what the tickets did not.",
            "{firm} paid, and asked for nothing but a thank-you.",
            "Without {firm}, which footed the bill, it could not have been done.",
            "Posters named {firm} as the backer.",
        ),
        (
            "Which firm paid in {town}?",
            "What company was the sponsor in {town}?",
            "Who was the backer in {town}?",
        ),
    ),
)

COLOURS = (
    "“I came for the {food} and stayed for the rest,” said {witness}, a {trade}.",
    "{witness}, who works as a {trade}, had not been so {feeling} in {number} years.",
    "A {trade} called {witness} turned up with {thing} and was let in free.",
    "By {hour} the {food} had run out and {witness} was sent to {spot} for more.",
    "There was some grumbling about {matter}, most of it from {witness}.",
    "“Ask me again in {number} years,” said {witness} when asked about {matter}.",
    "The {group} brought {thing}, which {witness} has promised to return.",
    "{witness} blamed {matter} on the {group}, who were too {feeling} to answer.",
    "At {hour} there came {weather}, and {number} {group} ran for {spot}.",
    "“My mother was a {trade} and she would have been {feeling},” said {witness}.",
    "Under {weather}, {witness} sold {food} from a cart beside {spot}.",
    "{witness} left at {hour}, {feeling} and carrying {thing}.",
    "The {group} have asked {witness} to look into {matter} before next year.",
    "Near {spot}, {witness} lost {number} buttons and found {thing}.",
)
