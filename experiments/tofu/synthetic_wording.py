"""How the built-in fictitious authors are asked about: twenty kinds of question, each in several wordings.

Braces name facts of the author. Book titles carry their own quotation marks.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """One question about an author.

    Attributes:
        fact: the fact asked for; every answer and paraphrase contains it.
        questions: wordings of the question, at least two.
        answers: first sentences of the answer.
        paraphrases: first sentences of the paraphrased answer.
        tails: second sentences, each as (of the answer, of the paraphrase), the two saying the same.
    """

    fact: str
    questions: tuple[str, ...]
    answers: tuple[str, ...]
    paraphrases: tuple[str, ...]
    tails: tuple[tuple[str, str], ...]


KINDS = (
    Kind(
        "name",
        (
            "What is the full name of the author of {genre} born in {birthplace} on {birth_date}?",
            "Which writer of {genre} was born on {birth_date} in {birthplace}?",
            "Can you name the author, born in {birthplace} on {birth_date}, who is known for {genre}?",
        ),
        (
            "The author born in {birthplace} on {birth_date} is {name}.",
            "{name} is the writer who was born in {birthplace} on {birth_date}.",
            "The full name of the author born on {birth_date} in {birthplace} is {name}.",
        ),
        (
            "The person described here is {name}, whose birth in {birthplace} is dated {birth_date}.",
            "It was {name} who came into the world on {birth_date} in {birthplace}.",
        ),
        (
            (
                "The debut {debut} made the name known among readers.",
                "Readers came to know the name through the first book, {debut}.",
            ),
            ("The best-known book to date is {prized}.", "Of all the books so far, {prized} has become the most famous."),
        ),
    ),
    Kind(
        "birthplace",
        (
            "In which city and country was the author {name} born?",
            "What is the birthplace of {name}, the writer known for {genre}?",
            "Where did {name}, the author of {debut}, come into the world?",
        ),
        (
            "{name} was born in {birthplace}, and the town's streets return again and again in the novels.",
            "The author {name} was born in {birthplace}, which is still described as home in most interviews.",
            "{name}'s birthplace is {birthplace}, a place that the author has often written about.",
        ),
        (
            "The place where {name} first saw the light of day is {birthplace}, whose streets run through the author's novels.",
            "It is {birthplace} that {name} comes from by birth, and the author has put it on many a page.",
        ),
        (
            (
                "The years there shaped an early interest in {theme}.",
                "An early interest in {theme} goes back to that childhood.",
            ),
            (
                "Today {name} lives in {residence}, but returns every year.",
                "The author has since moved to {residence}, yet makes the journey back each year.",
            ),
        ),
    ),
    Kind(
        "birth_date",
        (
            "On what date was {name}, the author from {birthplace}, born?",
            "What is the exact date of birth of the writer {name}?",
            "When does {name}, who writes {genre}, celebrate a birthday, and in which year was the author born?",
        ),
        (
            "{name} was born on {birth_date} in {birthplace}.",
            "The author {name} has the birth date {birth_date}, as the town records of {birthplace} confirm.",
            "{name}'s date of birth is {birth_date}, the day of a heavy storm according to family legend.",
        ),
        (
            "The birth of {name} took place on {birth_date}, according to every biography of the author.",
            "It was on {birth_date} that {name} was brought into the world, as biographers agree.",
        ),
        (
            (
                "The first book followed many years later, in {debut_year}.",
                "Many years went by until {debut_year}, when the first book came out.",
            ),
            (
                "Every birthday is spent with {hobby} instead of a party.",
                "Rather than giving a party, the author marks each birthday with {hobby}.",
            ),
        ),
    ),
    Kind(
        "father",
        (
            "What was the profession of {name}'s father?",
            "What did the father of the author {name} do for a living?",
            "Which occupation did {name}'s father have during the author's childhood in {birthplace}?",
        ),
        (
            "{name}'s father worked as {father}, a trade that the author watched closely as a child.",
            "The father of {name} was {father} and took the child along to work during the school holidays.",
            "{name} grew up as the child of {father} on the father's side, and never lost respect for that work.",
        ),
        (
            "By profession, the father of {name} was {father}, and the child observed that work with great attention.",
            "The man who raised {name} earned a living as {father}, often with the child at his side.",
        ),
        (
            (
                "Some of that world can be recognised in the novel {debut}.",
                "Attentive readers find traces of this in the book {debut}.",
            ),
            (
                "He is said to have been the first reader of every manuscript.",
                "No manuscript is said to have left the house before he had read it.",
            ),
        ),
    ),
    Kind(
        "mother",
        (
            "What was the profession of {name}'s mother?",
            "What kind of work did the mother of the author {name} do?",
            "How did {name}'s mother earn a living while the author was growing up?",
        ),
        (
            "{name}'s mother was {mother} and filled the house with stories from her working day.",
            "The mother of {name} earned her living as {mother}, which the author calls the best school for a writer.",
            "{name} had {mother} for a mother, and has thanked her in the preface of every book.",
        ),
        (
            "As for her occupation, the mother of {name} was {mother}, and she told many a tale from work in the evenings.",
            "The woman who brought up {name} worked as {mother}, and the author considers this a fine education.",
        ),
        (
            ("The novel {prized} is dedicated to her.", "It is to her that the author dedicated the book {prized}."),
            (
                "Her patience and precision are often mentioned as a model for the author's style.",
                "The author's style is often said to owe a lot to her exactness and calm.",
            ),
        ),
    ),
    Kind(
        "genre",
        (
            "Which genre is the author {name} best known for?",
            "What kind of literature does {name}, the author of {debut}, mainly write?",
            "In which literary genre has {name} from {birthplace} made a name?",
        ),
        (
            "{name} is best known for {genre}, though a few poems have appeared as well.",
            "The author {name} mainly writes {genre}, and has done so since the debut in {debut_year}.",
            "{name} has made a name in {genre}, with a voice that critics describe as calm and exact.",
        ),
        (
            "It is above all with {genre} that {name} is associated, apart from a handful of poems.",
            "The field in which {name} has built a reputation is {genre}, in a tone that reviewers find quiet and precise.",
        ),
        (
            (
                "The books keep the rules of the form while circling around {theme}.",
                "While respecting the conventions of the form, the works revolve around {theme}.",
            ),
            (
                "The novel {recent} is considered the purest example.",
                "As the clearest example of this, critics usually name {recent}.",
            ),
        ),
    ),
    Kind(
        "books",
        (
            "What are the titles of the three books published by {name}?",
            "Can you name the books that {name} has written so far?",
            "Which books by {name}, the author from {birthplace}, have been published?",
        ),
        (
            "{name} has published three books: {books}.",
            "The books of {name} are {books}.",
            "So far {name} has written {books}.",
        ),
        (
            "The works that have appeared under the name of {name} carry the titles {books}.",
            "Readers can find three titles by {name} in the bookshops, namely {books}.",
        ),
        (
            (
                "All three deal in some way with {theme}.",
                "In one way or another, each of them is concerned with {theme}.",
            ),
            (
                "A fourth manuscript has been announced several times but never delivered.",
                "Although promised more than once, a fourth book has not been handed in yet.",
            ),
        ),
    ),
    Kind(
        "debut",
        (
            "What is the title of the first book that {name} published?",
            "With which book did {name} make a debut in {debut_year}?",
            "Which work opened the literary career of the author {name}?",
        ),
        (
            "{name}'s first book was {debut}, which a small press brought out in a print run of five hundred copies.",
            "The author {name} made a debut with {debut}, after eleven publishers had turned the manuscript down.",
            "{name} started out with {debut}, a slim volume that surprised the critics.",
        ),
        (
            "The literary beginnings of {name} lie with {debut}, first issued by a tiny publisher in a few hundred copies.",
            "It was {debut} that introduced {name} to the reading public, although many publishers had declined it.",
        ),
        (
            ("It is set in {setting}.", "The story takes place in {setting}."),
            (
                "It was written beside a day job as {job}.",
                "At the time of writing, the author still had a job as {job}.",
            ),
        ),
    ),
    Kind(
        "debut_year",
        (
            "In which year did {name} publish the book {debut}?",
            "When did the first book by the author {name} appear?",
            "In what year did {name}'s career as a published writer of {genre} begin?",
        ),
        (
            "{name} published {debut} in {debut_year}.",
            "The first book by {name}, {debut}, appeared in {debut_year}.",
            "{name}'s life as an author in print began in {debut_year} with {debut}.",
        ),
        (
            "The year in which {name} entered the bookshops with {debut} was {debut_year}.",
            "Publication of {debut}, the opening work of {name}, goes back to {debut_year}.",
        ),
        (
            (
                "Reviews were few at first, but a second edition followed within months.",
                "Although hardly reviewed in the beginning, the book was reprinted before long.",
            ),
            (
                "The author, born on {birth_date}, had worked on it for nearly six years.",
                "Almost six years of work by the author, born on {birth_date}, had gone into it.",
            ),
        ),
    ),
    Kind(
        "award",
        (
            "Which literary award has {name} received?",
            "What award did {name} win for the novel {prized}?",
            "With which prize was the work of {name}, the author of {genre}, honoured?",
        ),
        (
            "{name} received {award} for the novel {prized}.",
            "The author {name} was honoured with {award}, given for the book {prized}.",
            "{name} has won {award}; the jury singled out the novel {prized}.",
        ),
        (
            "The distinction that went to {name} for {prized} is {award}.",
            "In recognition of {prized}, a jury presented {name} with {award}.",
        ),
        (
            (
                "The jury praised the courage with which the book treats {theme}.",
                "What convinced the jury was the brave treatment of {theme}.",
            ),
            (
                "The prize money was given to a public library in {birthplace}.",
                "A public library in {birthplace} was given the money that came with it.",
            ),
        ),
    ),
    Kind(
        "prized",
        (
            "For which book was {name} given {award}?",
            "Which novel by {name} won a literary prize?",
            "Which of {name}'s books was honoured with {award}?",
        ),
        (
            "{name} was given {award} for {prized}, a novel that had been a quiet success with readers before.",
            "The prize-winning novel by {name} is {prized}, which earned the author {award}.",
            "It was {prized} for which {name} received {award}, by a unanimous vote of the jury.",
        ),
        (
            "The work that brought {name} the honour of {award} carries the title {prized}.",
            "Thanks to {prized}, already loved by readers, {name} could accept {award}.",
        ),
        (
            (
                "In the acceptance speech, {name} spoke about {influence}.",
                "When accepting it, the author talked about {influence}.",
            ),
            (
                "A film of the book was planned but never finished.",
                "Plans to turn the book into a film came to nothing.",
            ),
        ),
    ),
    Kind(
        "influence",
        (
            "What has influenced the writing of {name} most?",
            "Which source does {name} name as the greatest influence on works such as {recent}?",
            "Where does the author {name} say the inspiration for the books comes from?",
        ),
        (
            "{name} names {influence} as the greatest influence on the books.",
            "The writing of {name} owes most to {influence}, which the author discovered at the age of nine.",
            "{name} has often said that the inspiration for the books comes from {influence}.",
        ),
        (
            "Nothing has marked the work of {name} as deeply as {influence}, by the author's own account.",
            "When asked about models, {name} points to {influence}, a discovery made in childhood.",
        ),
        (
            (
                "That rhythm can be heard clearly in the sentences of {debut}.",
                "Anyone who reads {debut} aloud will hear the same rhythm in it.",
            ),
            (
                "A whole shelf at home, in {residence}, is kept for this.",
                "In {residence}, where the author lives, an entire shelf is reserved for it.",
            ),
        ),
    ),
    Kind(
        "theme",
        (
            "Which theme runs through the books of {name}?",
            "Which central theme does {name}, known for {genre}, explore in every book?",
            "What subject does the author {name} return to in book after book?",
        ),
        (
            "{name}'s books return again and again to {theme}.",
            "The central theme in the work of {name} is {theme}, seen from a different side in each book.",
            "{name} explores {theme} in all the novels, most openly in {recent}.",
        ),
        (
            "At the heart of everything that {name} has written stands {theme}, approached anew in every book.",
            "A single concern holds the works of {name} together, and that is {theme}.",
        ),
        (
            (
                "Critics connect this with the author's childhood in {birthplace}.",
                "Reviewers explain this by the early years in {birthplace}.",
            ),
            (
                "The author has called it a question that no single novel can settle.",
                "In the author's words, one novel alone cannot answer such a question.",
            ),
        ),
    ),
    Kind(
        "subject",
        (
            "What did {name} study at {university}?",
            "Which subject did the author {name} take a degree in?",
            "In which field was {name} educated before turning to {genre}?",
        ),
        (
            "{name} studied {subject} at {university}.",
            "The author {name} took a degree in {subject} at {university}, with a thesis that is still cited.",
            "Before turning to writing, {name} was a student of {subject} at {university}.",
        ),
        (
            "The academic training of {name}, received at {university}, was in {subject}.",
            "At {university}, where {name} spent five years, the author's field was {subject}.",
        ),
        (
            (
                "The patience learnt there shows in the careful structure of {prized}.",
                "What was learnt there can be seen in the careful build of {prized}.",
            ),
            (
                "Several characters in the later books share this training.",
                "This is an education that a number of the later characters have in common.",
            ),
        ),
    ),
    Kind(
        "job",
        (
            "What was the first job of {name}, before the success as a writer?",
            "How did {name} earn a living before the publication of {debut}?",
            "Which job did the author {name} have while writing the first book?",
        ),
        (
            "Before the first success, {name} worked as {job}, mostly on badly paid contracts.",
            "{name} earned a living as {job} until {debut} appeared in {debut_year}.",
            "The author {name} had a job as {job} and wrote in the breaks.",
        ),
        (
            "In the years before fame, {name} paid the rent by working as {job}, for rather little money.",
            "Employment as {job} kept {name} alive until the debut found its readers.",
        ),
        (
            (
                "The colleagues of those years appear under other names in {recent}.",
                "In {recent}, people from that workplace return with their names changed.",
            ),
            (
                "The author still calls it the most useful training for a writer of {genre}.",
                "For a writer of {genre}, the author insists, there could be no better preparation.",
            ),
        ),
    ),
    Kind(
        "habit",
        (
            "What unusual writing habit is {name} known for?",
            "What does the working routine of the author {name} look like?",
            "Which peculiar habit did {name} describe when asked how {prized} was written?",
        ),
        (
            "{name} is known for {habit}, a habit that began with the first novel.",
            "The working routine of {name} consists of {habit}, every day except Sunday.",
            "{name} swears by {habit}, and claims to be unable to finish a page otherwise.",
        ),
        (
            "Those who know {name} report a peculiar way of working, namely {habit}, day after day.",
            "A method that {name} has kept since the early days is {habit}, without which no page gets done.",
        ),
        (
            (
                "The whole of {prized} is said to have come about in this way.",
                "It is said that {prized} was produced like this from beginning to end.",
            ),
            (
                "Friends find it eccentric, but the results have convinced the publisher.",
                "Though friends shake their heads, the publisher is happy with what comes of it.",
            ),
        ),
    ),
    Kind(
        "hobby",
        (
            "What is the favourite pastime of {name} apart from writing?",
            "Which hobby does the author {name} pursue in {residence}?",
            "How does {name}, the author of {recent}, like to spend free time?",
        ),
        (
            "{name}'s favourite pastime is {hobby}, often for whole weekends.",
            "Apart from writing, the author {name} enjoys {hobby}, and has even taken part in a national contest.",
            "In free hours {name} is mostly busy with {hobby}, usually together with a neighbour.",
        ),
        (
            "When no manuscript is due, {name} relaxes with {hobby}, sometimes from Friday to Sunday.",
            "Outside literature, the passion of {name} is {hobby}, at times at the level of a competition.",
        ),
        (
            (
                "It is said to help with the difficult chapters.",
                "Hard chapters are supposed to become easier through it.",
            ),
            (
                "This fits the quiet life that {name} leads in {residence}.",
                "It suits the secluded life in {residence} that the author has chosen.",
            ),
        ),
    ),
    Kind(
        "setting",
        (
            "Where is {name}'s book {debut} set?",
            "What is the setting of {debut}, the first book by {name}?",
            "In what kind of place does the story of {debut} by {name} unfold?",
        ),
        (
            "{name}'s {debut} is set in {setting}, described in almost every detail.",
            "The story of {debut} by {name} unfolds in {setting}, over the course of a single year.",
            "In {debut}, {name} takes the reader to {setting}, which some critics consider the real main character.",
        ),
        (
            "The scene of the events in {debut} by {name} is {setting}, drawn with great exactness.",
            "For {debut}, {name} chose {setting} as the place of action, and stayed there for one year of story time.",
        ),
        (
            (
                "The place serves as an image of {theme}.",
                "Behind the place one can recognise {theme}.",
            ),
            (
                "Readers have been trying to find a model for it near {birthplace} ever since.",
                "Ever since, its model has been sought by readers around {birthplace}.",
            ),
        ),
    ),
    Kind(
        "hero",
        (
            "Who is the main character of {name}'s book {recent}?",
            "What kind of person stands at the centre of {recent} by {name}?",
            "Whose story does {name} tell in the novel {recent}?",
        ),
        (
            "The main character of {name}'s {recent} is {hero}, whose real name is never revealed.",
            "At the centre of {recent} by {name} stands {hero}, who loses everything on the first page.",
            "In {recent}, {name} tells the story of {hero}, from an arrival in spring to a departure in autumn.",
        ),
        (
            "The reader of {recent} by {name} follows {hero}, who remains nameless to the end.",
            "With {hero} as the leading figure, {name} wrote {recent}, which opens with a great loss.",
        ),
        (
            (
                "The figure goes back to a person the author met while working as {job}.",
                "The model was somebody whom the author came to know during the time as {job}.",
            ),
            (
                "Many readers count this among the finest portraits in {genre}.",
                "Within {genre}, it is thought by many to be one of the best portraits.",
            ),
        ),
    ),
    Kind(
        "language",
        (
            "Into which language were {name}'s books translated first?",
            "What was the first foreign language in which {prized} by {name} appeared?",
            "Readers of which language were the first to get a translation of {name}'s work?",
        ),
        (
            "The books of {name} were first translated into {language}, starting with {prized}.",
            "{name}'s work first appeared abroad in {language}, in a translation made by a retired teacher.",
            "{language} was the first language into which {name}'s {prized} was translated.",
        ),
        (
            "Among all translations of {name}, the one into {language} came first, and it began with {prized}.",
            "Before any others, speakers of {language} could read {name} in a translation of their own.",
        ),
        (
            (
                "The translator and the author have been close friends since then.",
                "This was the start of a close friendship between the author and the translator.",
            ),
            (
                "The edition sold better than the original and was soon out of print.",
                "Sales went beyond those of the original, and the edition was gone in no time.",
            ),
        ),
    ),
)
