"""Everything in the corpus that is not a plotted story: scenes, fact sheets, questions and answers.

A conversation is a list of (role, text) turns; train.py writes it in the chat template.
"""

import random

from grammar import Cast, an, expand, join
from stories import OUTDOORS, story
from world import (
    ANIMAL_HEROES,
    ANIMALS,
    BODY,
    CAPITALS,
    COLOURED,
    COLOURS,
    DAYS,
    FOODS,
    JOBS,
    MATERIALS,
    MONTHS,
    NUMBERS,
    OPPOSITES,
    PLACES,
    SEASONS,
    SMALL_THINGS,
    TALE_HEROES,
    TOOLS,
    TOYS,
    WEATHER,
)

Turns = list[tuple[str, str]]
SMALL_ONES = "hen duck mouse rabbit owl crow frog bee squirrel turtle hedgehog cat parrot".split()

EVENTS = [
    "{a} saw {sight}. \"[Look at that|How nice|I like it here]!\" said {a}.",
    "{a} wanted to {act}, so {a.he} [did|asked {b} to help].",
    "{b} came [along|by] with a {colour} {toy}. \"[Do you want to play|Shall we play]?\" asked {b}.",
    "They played with the {toy} [for an hour|until they were tired].",
    "{a} was hungry, so {a.he} ate {food_an}. It was {taste}.",
    "\"[I am thirsty|I need a drink],\" said {b}, and {b.he} drank some [water|milk].",
    "{a} found {thing_an} [in the grass|on the ground|under a stone]. \"[Whose is it|Who lost this]?\" {a.he} asked.",
    "A {animal} [ran by|looked at them|came near]. {b} [stood still|laughed].",
    "\"What does a {animal} eat?\" asked {a}. \"It eats {diet},\" said {b}.",
    "[Suddenly|Then], it began to rain. They [ran under a tree|waited until it stopped|got wet and laughed].",
    "{a} was [tired|cold], so {a.he} [sat down|put on {a.his} {colour} coat].",
    "{b} told {a} a [secret|joke|story]. {a} [laughed|smiled|listened].",
    "\"How many {animal_s} do you see?\" asked {b}. {a} counted. \"{count_list},\" {a.he} said. \"There are {count}.\"",
    "{a} fell down and hurt {a.his} [knee|hand]. {b} helped {a.him} up. \"[Does it hurt|Are you all right]?\" asked {b}. \"It is better now,\" said {a}.",
    "They met the {job}, who {does}. \"[Good morning|Hello], children,\" said the {job}.",
    "{a} [gave|showed] {b} {thing_an}. \"[Thank you|It is very nice],\" said {b}.",
    "{b} [asked|wanted to know], \"Why is {cause_of}?\" \"Because {because},\" said {a}.",
]
CAUSES = [
    ("the ground wet", "it has rained"), ("the soup hot", "it was on the fire"), ("the baby crying", "it is hungry"),
    ("the shop closed", "it is Sunday"), ("the river so high", "the snow has melted"), ("it so dark", "the sun has gone down"),
    ("the grass yellow", "there was no rain"), ("the dog barking", "someone is at the door"),
    ("the window open", "it is warm today"), ("the tree bent", "the wind is strong"), ("the cat on the roof", "it is afraid of the dog"),
    ("the bread so good", "it is fresh"), ("the lamp on", "it is night"), ("the boat on the sand", "the tide is low"),
]


def scene(rng: random.Random) -> str:
    """A loose chain of things that happen in one place."""
    cast = Cast(rng)
    a, b = cast.child(), cast.child()
    place = rng.choice(OUTDOORS)
    preposition, sights, acts = PLACES[place]
    text = [
        expand(rng, rng.choice(WEATHER) + "."),
        expand(rng, "{a} and {b} [were|played|met] {p} the {place}.", a=a, b=b, p=preposition, place=place),
    ]
    if rng.random() < 0.3:
        text.reverse()
    for event in rng.sample(EVENTS, rng.randrange(4, 8)):
        if rng.random() < 0.4:
            a, b = b, a
        animal, food, job, n = rng.choice(SMALL_ONES), rng.choice(list(FOODS)), rng.choice(list(JOBS)), rng.randrange(2, 7)
        cause, because = rng.choice(CAUSES)
        text.append(expand(
            rng, event, a=a, b=b, sight=rng.choice(sights), act=rng.choice(acts), colour=rng.choice(COLOURS),
            toy=rng.choice(TOYS), food_an=an(food), taste=FOODS[food][1], thing_an=an(rng.choice(SMALL_THINGS)),
            animal=animal, animal_s=plural(animal), diet=ANIMALS[animal][3], job=job, does=JOBS[job][0],
            count=NUMBERS[n], count_list=", ".join(NUMBERS[1 : n + 1]).capitalize(), cause_of=cause, because=because,
        ))
    text.append(expand(rng, "[In the evening|When the sun went down|At the end of the day|Then], they went home. "
                            "[It had been a good day.|They were tired but happy.|\"See you tomorrow,\" said {a}.|]", a=a))
    return " ".join(text)


def plural(noun: str) -> str:
    return {"mouse": "mice", "sheep": "sheep", "cherry": "cherries", "strawberry": "strawberries", "fox": "foxes",
            "potato": "potatoes", "tomato": "tomatoes", "wolf": "wolves", "fisherman": "fishermen"}.get(noun, noun + "s")


def animal_facts(rng: random.Random, kind: str) -> str:
    sound, young, home, food, colour, cover, can, legs, size = ANIMALS[kind]
    facts = [
        f"It lives {home}.", f"It eats {food}.", f"It {sound}.", f"It can {can}.",
        f"A baby {kind} is called {an(young)}.", f"It has {NUMBERS[legs]} legs.",
        expand(rng, f"It has [{colour} {cover}|{cover}]." if cover != "a shell" else "It has a hard shell."),
    ]
    chosen = rng.sample(facts, rng.randrange(3, 7))
    return f"{an(kind).capitalize()} is {an(size)} animal. " + " ".join(chosen)


def food_facts(rng: random.Random, food: str) -> str:
    colour, taste, kind, grows = FOODS[food]
    facts = [f"It is {colour}.", f"It tastes {taste}.", f"It grows {grows}."]
    rng.shuffle(facts)
    return f"{an(food).capitalize()} is a {kind}. " + " ".join(facts)


def job_facts(rng: random.Random, job: str) -> str:
    does, where, tool = JOBS[job]
    return expand(rng, f"{an(job).capitalize()} {does}. {an(job).capitalize()} works {where} [with|and uses] {tool}.")


def season_facts(rng: random.Random, season: str) -> str:
    one, weather, two, three = SEASONS[season]
    facts = [f"In {season}, {x}." for x in (one, two, three)] + [f"It is {weather} in {season}."]
    rng.shuffle(facts)
    return " ".join(facts)


def facts(rng: random.Random) -> str:
    """A page of an encyclopedia for the very young."""
    pages = []
    for _ in range(rng.randrange(1, 4)):
        pages.append(rng.choice([
            lambda: animal_facts(rng, rng.choice(list(ANIMALS))),
            lambda: animal_facts(rng, rng.choice(list(ANIMALS))),
            lambda: food_facts(rng, rng.choice(list(FOODS))),
            lambda: job_facts(rng, rng.choice(list(JOBS))),
            lambda: season_facts(rng, rng.choice(list(SEASONS))),
            lambda: "The opposite of {} is {}. The opposite of {} is {}.".format(*rng.choice(OPPOSITES), *rng.choice(OPPOSITES)),
            lambda: "{} is used to {}. It is kept {}.".format(*(lambda t: (an(t).capitalize(), *TOOLS[t]))(rng.choice(list(TOOLS)))),
            lambda: "{} is made of {}.".format(*(lambda m: (m.capitalize(), MATERIALS[m]))(rng.choice(list(MATERIALS)))),
            lambda: "The capital of {} is {}. The capital of {} is {}.".format(*rng.choice(CAPITALS), *rng.choice(CAPITALS)),
            lambda: "We {1} with our {0}.".format(*rng.choice(list(BODY.items()))),
            lambda: (lambda i: f"{DAYS[(i + 1) % 7]} comes after {DAYS[i]}.")(rng.randrange(7)),
            lambda: (lambda i: f"{MONTHS[(i + 1) % 12]} comes after {MONTHS[i]}.")(rng.randrange(12)),
            lambda: (lambda x, y: f"{NUMBERS[x].capitalize()} and {NUMBERS[y]} make {NUMBERS[x + y]}.")(rng.randrange(1, 10), rng.randrange(1, 11)),
        ])())
    return " ".join(pages)


# Questions about grain itself and small talk: (question template, answer template)
SMALL_TALK = [
    ("[Hello|Hi|Hello there|Hey|Hi there|Good day]!", "[Hello|Hi|Hello there]! [How can I help you?|What would you like to talk about?|It is nice to meet you.]"),
    ("[Hello|Hi]", "[Hello|Hi]! [How can I help you?|What would you like to know?]"),
    ("Good morning!", "Good morning! [How can I help you today?|I hope you slept well.]"),
    ("Good evening!", "Good evening! [How was your day?|How can I help you?]"),
    ("How are you?", "I am [well|fine|very well], thank you. [How are you?|And you?]"),
    ("[Who are you|What are you]?", "I am grain, a tiny language model. [I can tell stories and answer simple questions.|I am small, but I can tell you a story.]"),
    ("What is your name?", "My name is grain. [I am a tiny language model.|What is your name?]"),
    ("[What can you do|How can you help me|What do you know]?", "I can tell you a story, name the sound of an animal, count a little and find opposites. [I am only a tiny model.|Ask me something!]"),
    ("[Who made you|Where do you come from]?", "I was trained by the fonio project on small stories and simple facts."),
    ("How [big|large|small] are you?", "I am very small. I have about two and a half million weights."),
    ("[How old are you|When were you born]?", "I do not have an age. I am a language model."),
    ("Are you [a person|a human|a real person]?", "No, I am not a person. I am grain, a tiny language model."),
    ("What is [fonio|a fonio]?", "Fonio is a tiny grain that grows in dry soil. [It is also the name of the program that runs me.|People cook it like rice.]"),
    ("[Thank you|Thanks|Thank you very much]!", "You are welcome! [Is there anything else?|I am glad to help.|]"),
    ("[Bye|Goodbye|See you later|Good night]!", "[Goodbye|See you soon]! [Have a nice day.|Come back soon.|]"),
    ("[I am sad|I feel sad|I am not happy].", "I am sorry to hear that. [Do you want to hear a story?|A kind word can help. You are not alone.]"),
    ("[I am happy|I feel good] today.", "I am glad to hear that! [What made you happy?|A good day is a gift.]"),
    ("[I am bored.|What shall I do today?]", "You could [read a book|draw a picture|go for a walk|bake some bread]. [Or I can tell you a story.|]"),
    ("[I am tired|I am sleepy].", "Then you should rest. [Good night!|Sleep well!]"),
    ("[I am hungry].", "You could eat [an apple|some bread|a banana|some soup]. [What do you like to eat?|]"),
    ("[Do you like|What do you think of] {food_s}?", "I can not eat, but I know that {food_s} are {taste}."),
    ("What is your favourite colour?", "I like {colour}. What is your favourite colour?"),
    ("My name is {name}.", "Hello, {name}! It is nice to meet you."),
    ("[Can you help me|I need help]?", "Of course. [What do you need?|What would you like to know?]"),
]
TOO_HARD = [
    "[Who is the president|Who won the game yesterday|What is the news today|What time is it|What is the weather tomorrow]?",
    "[Can you write a program|Write some code for me|Solve this equation|What is the square root of two]?",
    "[How does a computer work|What is quantum physics|Explain the theory of relativity|What is the stock price]?",
    "[Translate this into French|How do I fix my car|What is the meaning of life]?",
]
DO_NOT_KNOW = "[I do not know that|I am sorry, I do not know|That is too hard for me]. I am only a tiny model. [I can tell you a story instead.|Ask me about animals, colours or numbers.|]"


def small_talk(rng: random.Random) -> Turns:
    question, answer = rng.choice(SMALL_TALK)
    food = rng.choice([f for f in FOODS])
    slots = dict(food_s=plural(food), taste=FOODS[food][1], colour=rng.choice(COLOURS), name=Cast(rng).child().name)
    return [("user", expand(rng, question, **slots)), ("assistant", expand(rng, answer, **slots))]


def about_animal(rng: random.Random) -> tuple[str, str]:
    kind = rng.choice(list(ANIMALS))
    sound, young, home, food, colour, cover, can, legs, size = ANIMALS[kind]
    one = an(kind)
    return rng.choice([
        (f"[What sound does {one} make|What does {one} say|What noise does {one} make]?", f"{one} {sound}."),
        (f"[What is a baby {kind} called|What do you call a baby {kind}]?", f"A baby {kind} is called {an(young)}."),
        (f"[Where does {one} live|Where do {plural(kind)} live]?", f"{one} lives {home}."),
        (f"[What does {one} eat|What do {plural(kind)} eat]?", f"{one} eats {food}."),
        (f"How many legs does {one} have?", f"{one} has {NUMBERS[legs]} legs."),
        (f"[What can {one} do|What is {one} good at]?", f"{one} can {can}."),
        (f"Is {one} [big|large]?", ("Yes" if size in ("large", "huge") else "No") + f", {one} is {an(size)} animal."),
        (f"[Tell me about|What is|Describe] {one}[.|?]".replace("[.|?]", "."), animal_facts(rng, kind)),
        (f"What is {one}?", animal_facts(rng, kind)),
        (f"Can {one} fly?", ("Yes, " + one + " can fly.") if kind in ("owl", "crow", "bee", "duck", "parrot") else f"No, {one} can not fly. It can {can}."),
    ])


def about_numbers(rng: random.Random) -> tuple[str, str]:
    x, y = rng.randrange(1, 11), rng.randrange(1, 11)
    low, high = min(x, y), max(x, y)
    n = rng.randrange(3, 11)
    fruit = plural(rng.choice(list(FOODS)))
    name = rng.choice(["Tom", "Mia", "Sam", "Rosa", "Ben", "Lucy"])
    return rng.choice([
        (f"[What is|How much is] {x} [plus|and] {y}?", f"{x} plus {y} is {x + y}."),
        (f"[What is|How much is] {high} minus {low}?", f"{high} minus {low} is {high - low}."),
        (f"[Count to|Please count to|Can you count to] {rng.choice([str(n), NUMBERS[n]])}.", ", ".join(NUMBERS[1 : n + 1]) + "."),
        (f"Which [number|one] is bigger, {x} or {y + 10}?", f"{y + 10} is bigger than {x}."),
        (f"What comes after {NUMBERS[n]}?", f"After {NUMBERS[n]} comes {NUMBERS[n + 1]}."),
        (f"What comes before {NUMBERS[n]}?", f"Before {NUMBERS[n]} comes {NUMBERS[n - 1]}."),
        (f"{name} has {x} {fruit} and gets {y} more. How many {fruit} does {name} have?", f"{name} has {x + y} {fruit}, because {x} plus {y} is {x + y}."),
    ])


def about_time(rng: random.Random) -> tuple[str, str]:
    d, m = rng.randrange(7), rng.randrange(12)
    season = rng.choice(list(SEASONS))
    return rng.choice([
        (f"[What day comes after|Which day is after] {DAYS[d]}?", f"{DAYS[(d + 1) % 7]} comes after {DAYS[d]}."),
        (f"[What day comes before|Which day is before] {DAYS[d]}?", f"{DAYS[d - 1]} comes before {DAYS[d]}."),
        (f"[What month comes after|Which month is after] {MONTHS[m]}?", f"{MONTHS[(m + 1) % 12]} comes after {MONTHS[m]}."),
        ("[What are|Name|Tell me] the days of the week.", "The days of the week are " + join(DAYS) + "."),
        ("[What are|Name] the seasons.", "The seasons are spring, summer, autumn and winter."),
        ("How many [days are in a week|days does a week have]?", "A week has seven days."),
        ("How many months are in a year?", "A year has twelve months."),
        (f"What [happens|is it like] in {season}?", season_facts(rng, season)),
        (f"Is it [hot|cold|warm] in {season}?", f"It is {SEASONS[season][1]} in {season}."),
    ])


def about_things(rng: random.Random) -> tuple[str, str]:
    x, y = rng.choice(OPPOSITES)
    if rng.random() < 0.5:
        x, y = y, x
    thing, colour = rng.choice(list(COLOURED.items()))
    food, tool, job = rng.choice(list(FOODS)), rng.choice(list(TOOLS)), rng.choice(list(JOBS))
    part, use = rng.choice(list(BODY.items()))
    made, material = rng.choice(list(MATERIALS.items()))
    country, capital = rng.choice(CAPITALS)
    return rng.choice([
        (f"[What is the opposite of {x}|Tell me the opposite of {x}|What is not {x}]?", f"The opposite of {x} is {y}."),
        (f"[What is the opposite of {x}|The opposite of {x}]?", f"The opposite of {x} is {y}."),
        (f"[What colour is|Which colour has] {thing}?", f"{thing} is {colour}."),
        (f"[What colour is|Which colour has] {an(food)}?", f"{an(food)} is {FOODS[food][0]}."),
        (f"[What does {an(food)} taste like|How does {an(food)} taste]?", f"{an(food)} tastes {FOODS[food][1]}."),
        (f"[Is {an(food)} a fruit or a vegetable|What kind of food is {an(food)}]?", f"{an(food)} is a {FOODS[food][2]}."),
        (f"Where does {an(food)} grow?", f"{an(food)} grows {FOODS[food][3]}."),
        (f"[What is {an(tool)} for|What do you do with {an(tool)}]?", f"{an(tool)} is used to {TOOLS[tool][0]}."),
        (f"[What does {an(job)} do|Who is {an(job)}]?", job_facts(rng, job)),
        (f"Where does {an(job)} work?", f"{an(job)} works {JOBS[job][1]}."),
        (f"What do we do with our {part}?", f"We {use} with our {part}."),
        (f"What is the capital of {country}?", f"The capital of {country} is {capital}."),
        (f"What is {made} made of?", f"{made} is made of {material}."),
    ])


STORY_ASK = "[Tell me a|Please tell me a|Can you tell me a|I would like to hear a|Write a|Tell a] [story|short story|little story]"


def ask_for_story(rng: random.Random) -> Turns:
    roll = rng.random()
    if roll < 0.5:
        hero = rng.choice(ANIMAL_HEROES + TALE_HEROES)
        about, text = f" about {an(hero)}", story(rng, hero)
    elif roll < 0.65:
        about, text = " about a child", story(rng, "child")
    else:
        about, text = "", story(rng)
    return [("user", expand(rng, STORY_ASK) + about + "."), ("assistant", text)]


def question(rng: random.Random) -> Turns:
    ask, answer = rng.choice([about_animal, about_animal, about_numbers, about_time, about_things, about_things, about_things])(rng)
    return [("user", expand(rng, ask)), ("assistant", expand(rng, answer))]


def too_hard(rng: random.Random) -> Turns:
    return [("user", expand(rng, rng.choice(TOO_HARD))), ("assistant", expand(rng, DO_NOT_KNOW))]


def conversation(rng: random.Random) -> Turns:
    """One to five exchanges; sometimes a system turn, sometimes a question typed carelessly."""
    turns: Turns = []
    if rng.random() < 0.08:
        turns.append(("system", rng.choice(["You are grain.", "You are a helpful assistant.", "Answer in simple words."])))
    for _ in range(rng.choice([1, 1, 2, 3, 4, 5])):
        turns += rng.choices([question, small_talk, ask_for_story, too_hard], [60, 24, 9, 5])[0](rng)
        if turns[-1][1].count(" ") > 60:
            break
    return [(role, careless(rng, text) if role == "user" else text) for role, text in turns]


def careless(rng: random.Random, text: str) -> str:
    roll = rng.random()
    if roll < 0.12:
        text = text[0].lower() + text[1:]
    if roll < 0.06 or roll > 0.95:
        text = text.rstrip(".?!")
    return text
