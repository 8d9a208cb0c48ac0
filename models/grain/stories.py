"""Short stories: about thirty plots, each with many ways of being told.

A plot is a list of templates in which {a} and {b} are two characters, and what is
lost, seen, made or feared is drawn from world.py and stays the same throughout.
"""

import random

from grammar import Cast, Someone, an, expand, join
from world import ANIMALS, COLOURS, FOODS, JOBS, LOOKS, PLACES, SEASONS, SMALL_THINGS, TOYS, WEATHER

OPENINGS = [
    "[Once upon a time|Once|Long ago|One day], there was {a.a} named {a}.",
    "[Once upon a time|Long ago], {a.a} named {a} lived [in a small house|near the {place2}|in a little village|with {a.his} {elder}].",
    "There was once {a.a} [named|called] {a}.",
    "{a} was {a.a} who lived [near a {place2}|in a small village|at the edge of a {place2}].",
    "{a} was {a.a}. {a.He} [loved to {hobby}|liked to {hobby} very much].",
]
HOBBIES = """sing|draw|read|run|dance|play outside|tell stories|look at the stars|paint|swim|build things|help others|
count things|ask questions|walk in the rain|cook""".replace("\n", "").split("|")
MORALS = [
    "From that day on, {a} {lesson}.",
    "{a} learned [something that day|a lesson]: {proverb}.",
    "And {a} never forgot that {proverb}.",
    "That night, {a} [slept well|fell asleep with a smile|dreamed of the {place}].",
    "It was [a very good day|the best day of the year|a day to remember].",
    "They were [friends|good friends|best friends] from then on.",
    "[And they all lived happily|Everyone was happy]. The end.",
    "{a} went home [tired but happy|with a big smile|and told {a.his} {elder} everything].",
]
SAID_GLAD = "[said|cried|laughed|shouted|sang]"
SAID = "[said|asked|answered|whispered]"

# Each plot: (lesson, proverb, sentences)
PLOTS: dict[str, tuple[str, str, list[str]]] = {
    "lost": ("always put {a.his} things in the right place", "friends help each other", [
        "{a.He} had {look_thing}. {a.He} [loved it very much|took it everywhere|kept it in {a.his} pocket].",
        "One [morning|day|afternoon], the {thing} was [gone|not there|missing]. {a} [was very sad|began to cry|did not know what to do].",
        "{a.He} looked [under the bed|behind the door|in every room] and [under the table|{at_place2}|on the shelf], but {a.he} [could not find it|found nothing].",
        "\"[What is wrong|Why are you sad|Why are you crying]?\" asked {a.his} friend {b}.",
        "\"I [have lost|can not find] my {thing},\" said {a}.",
        "\"[Do not worry|Do not cry]! I will help you [look for it|find it],\" said {b}.",
        "They went to the {place} [together|hand in hand] and looked [everywhere|for a long time].",
        "[At last|Then|After a while], {b} saw something {colour} [under a leaf|behind a stone|in the tall grass|near a tree]. It was the {thing}!",
        "\"[Thank you|You found it|Oh, thank you], {b}!\" [said|cried] {a}. {a.He} [was so happy|hugged {b}|jumped for joy].",
    ]),
    "afraid": ("was not so afraid any more", "being brave means trying even when you are afraid", [
        "{a} was afraid of {fear}.",
        "[Every night|When evening came|At bedtime], {a.he} [hid under the blanket|called {a.his} {elder}|could not sleep].",
        "\"[What are you afraid of|Why are you not asleep]?\" asked {a.his} {elder}.",
        "\"I am afraid of {fear},\" [said|whispered] {a}.",
        "{a.His} {elder} [sat down beside {a.him}|took {a.his} hand|gave {a.him} a hug]. \"[I was afraid too when I was small|Everyone is afraid sometimes|That is all right]. [Let us look together|Come with me].\"",
        "They [went to the window|opened the door|lit a small lamp] and looked out. {fear_answer}",
        "{a} [took a deep breath|thought about it|began to smile]. \"It is not so bad,\" {a.he} said.",
        "The next [night|evening], {a} {trying}.",
    ]),
    "share": ("always shared with others", "sharing makes everyone happy", [
        "{a} had {food_an}. It was [big and|fresh and|very] {taste}.",
        "{b} came [along|by] and looked at the {food}. \"I am [so|very] hungry,\" said {b}. \"[May I have some|Can you give me a piece]?\"",
        "\"No! It is mine,\" said {a}, and {a.he} [ran away|turned away|hid it behind {a.his} back].",
        "{b} was sad and sat down [under a tree|on a stone|alone].",
        "{a} [took a bite|began to eat], but [the {food} did not taste so good|{a.he} did not feel happy]. {a.He} [looked at|thought of] {b}.",
        "Then {a} [went back|came back]. \"I am sorry,\" {a.he} said. \"[Let us share|Here is half for you|You can have half].\"",
        "{b} smiled. They ate the {food} together, and it was [very {taste}|the best {food} of all|much better].",
    ]),
    "seed": ("looked after every plant", "good things need time", [
        "One day, {a} found [a small seed|a tiny seed|a brown seed] {at_place}.",
        "\"What [is it|will it be]?\" {a.he} asked. \"[Plant it and you will see|Put it in the ground and wait],\" said {a.his} {elder}.",
        "{a} [dug|made] a [small|little] hole, put the seed in and covered it with [earth|soil]. Every day {a.he} gave it water.",
        "[The first day|For many days], nothing happened. \"[It is not growing|Nothing is coming up]!\" said {a}. \"[You must wait|Be patient],\" said {a.his} {elder}.",
        "Then the [rain fell|sun shone], and [one morning|after a week] there was [a small green leaf|something green].",
        "The plant grew [taller and taller|every day|and grew]. In {season}, it had [big leaves|yellow flowers|a {colour} flower] and then {grown}.",
        "\"[I grew it myself|Look what I have grown]!\" said {a}. {a.He} gave [some|a few] to {b}, who [was very pleased|said thank you].",
    ]),
    "bake": ("helped in the kitchen every week", "work is light when many hands help", [
        "It was {b}'s birthday, and {a} wanted to bake {bake}.",
        "{a.He} went to the kitchen and [took out|found] [flour, eggs and milk|flour, butter and sugar|a big bowl and a spoon].",
        "First {a.he} [mixed the flour and the eggs|put everything in the bowl], then {a.he} added [honey|sugar|some {food}]. {a.He} [stirred and stirred|mixed it well].",
        "But [the flour fell on the floor|the bowl slipped|there was no milk left]! \"[Oh no|Oh dear]!\" said {a}.",
        "{a.His} {elder} came in and [laughed|smiled]. \"[I will help you|Let us do it together],\" {elder_he} said.",
        "They [put it in the oven|baked it] and waited. Soon the whole house smelled [sweet|good|of {bake_noun}].",
        "When {b} came, {a} said, \"Happy birthday!\" {b} [took a bite|ate a piece] and said, \"[This is very good|How good it tastes|It is the best {bake_noun} ever]!\"",
    ]),
    "wind": ("held on to {a.his} hat when the wind blew", "even the wind can bring a friend", [
        "It was [a windy day|a day with a strong wind], and {a} wore {a.his} new {colour} hat.",
        "[Suddenly|All at once], the wind [took the hat|blew the hat away]. \"My hat!\" cried {a}.",
        "The hat flew over [the wall|the houses|the trees] and [over|past] the {place2}. {a} ran after it as fast as {a.he} could.",
        "[At last|In the end] the hat [landed|came down] in front of {b}. {b} picked it up [and looked at it|and put it on].",
        "\"Is this your hat?\" asked {b}. \"Yes, it is,\" said {a}. \"[The wind took it|It flew away]. [Thank you for catching it|Thank you]!\"",
        "\"[It is a fine hat|What a nice hat],\" said {b}. \"Do you want to play with me?\"",
        "So they [played|ran about|flew a kite] {at_place} until [the sun went down|it was time to go home].",
    ]),
    "stuck": ("was always ready to help", "no one is too small to help", [
        "{weather}. {a} walked [along the path|through the forest|to the {place}] and heard a [small|sad|strange] sound. \"Help! Help!\" [it said|someone called].",
        "{a.He} looked [around|up and down|behind a tree]. There was {b.a}, who was stuck in [a bush|the mud|a net|a hole].",
        "\"[Please help me|I can not get out],\" said {b.a_the}. \"[I have been here all day|I am so tired].\"",
        "{a} [pulled|pulled and pulled], but {a.he} was not strong enough. So {a.he} [had an idea|thought hard].",
        "{a.He} [found a long stick|took a rope|called {a.his} friends] and [pulled again|tried again]. [One, two, three|Slowly, slowly], and {b.a_the} was free!",
        "\"Thank you! My name is {b},\" said {b.a_the}. \"[One day I will help you|I will never forget this].\"",
        "A week later, {a} was lost in the forest. It was dark. Then {b} came and showed {a.him} the way home.",
    ]),
    "learn": ("always tried again", "you can learn anything if you keep trying", [
        "{a} wanted to learn to {skill}. All {a.his} friends could do it, but {a} could not.",
        "The first time, {a.he} {fail}. \"[I will never learn it|It is too hard]!\" {a.he} said.",
        "{b} [heard this|came by] and said, \"[I could not do it at first|It was hard for me too]. [Try again|Do not give up].\"",
        "So {a} tried [again|once more]. {a.He} {fail} again, but [not so badly|a little less].",
        "{a.He} tried [every day|on {day} and on {day2}|in the morning and in the evening]. {b} [helped {a.him}|watched and helped].",
        "[One day|After a week|At last], {a} did it! {a.He} could {skill}. \"[Look at me|I can do it]!\" {a.he} {said_glad}.",
        "{b} [clapped|laughed with joy] and said, \"[I knew it|Well done]!\"",
    ]),
    "broke": ("always told the truth", "it is best to tell the truth", [
        "One day, {a} was playing with a ball in the house. {a.His} {elder} had said, \"[Do not play in the house|Play outside, please].\"",
        "[Crash|Bang]! The ball hit {vase}, and it [broke|fell down and broke] into many pieces.",
        "{a} was [scared|worried]. [\"What shall I do?\" {a.he} thought.|{a.He} hid the pieces under the bed.]",
        "Soon {a.his} {elder} came in and asked, \"[Who broke {vase}|What happened here]?\"",
        "{a} wanted to say that {pet} did it. But that was not true. {a.He} looked down and said, \"I did it. I am [very|so] sorry.\"",
        "{a.His} {elder} [was quiet for a moment|looked at {a.him}]. \"[Thank you for telling the truth|I am glad that you told me],\" {elder_he} said. \"[We can mend it|Let us clean it up together].\"",
        "They [picked up the pieces|swept the floor|mended it with glue]. {a} felt much better.",
    ]),
    "friend": ("was never alone again", "a friend can be found in any place", [
        "{a} was new in the village and had no friends. {a.He} [sat alone|played alone] {at_place} [every day|and felt sad].",
        "One day {a.he} saw {b}, who was [playing with a {toy}|drawing in the sand|reading under a tree].",
        "{a} wanted to [say hello|play too], but {a.he} was shy. {a.He} stood behind a tree and watched.",
        "Then the {toy} [rolled|fell] near {a}. {a.He} picked it up and [brought it back|gave it to {b}].",
        "\"Thank you,\" said {b}. \"What is your name?\" \"My name is {a},\" said {a} [quietly|with a smile].",
        "\"I am {b}. [Do you want to play with me|Shall we play together]?\" \"[Yes, I do|Yes, please|Oh yes]!\" said {a}.",
        "They [played all afternoon|laughed and ran until evening]. When it was time to go home, {b} said, \"[Come again tomorrow|See you tomorrow]!\"",
    ]),
    "trip": ("dreamed of the next trip", "there is always something new to see", [
        "On {day}, {a} went to the {place} with {a.his} {elder}. {weather}.",
        "{a.He} saw {sight1} and {sight2}. \"[Look|Oh, look]!\" said {a}. \"[I have never seen that before|How nice it is here].\"",
        "First they wanted to {do1}. {a} [liked it very much|laughed all the time].",
        "Then they [sat down|found a place to rest] and ate [bread and cheese|{food_an}|some cake]. {a} drank [water|milk|cold juice].",
        "After lunch, {a} wanted to {do2}. There {a.he} met {b}, and they [did it together|became friends].",
        "[In the evening|When the sun went down], {a.his} {elder} said, \"It is time to go home.\" \"[Can we come back|May we come again]?\" asked {a}.",
        "\"Of course,\" said {a.his} {elder}. \"We will come back [next week|in {season}|on {day2}].\"",
    ]),
    "race": ("was not proud any more", "slow and steady can win", [
        "{a} was [very fast|the fastest in the village], and {a.he} [knew it|was proud of it]. {b} was slow.",
        "\"[You are so slow|Nobody is as fast as I am]!\" said {a}. \"[Let us have a race|We will see],\" said {b}.",
        "They wanted to run [to the old tree|to the {place2} and back|around the lake]. \"One, two, three, go!\"",
        "{a} ran [like the wind|very fast], and soon {a.he} was far ahead. \"I have so much time,\" {a.he} thought, and {a.he} [lay down to sleep|stopped to eat {food_an}|sat down to rest].",
        "{b} [walked and walked|went on step by step] and never stopped.",
        "When {a} [woke up|looked up], {b} was almost there! {a} ran as fast as {a.he} could, but it was too late.",
        "{b} had won. \"[Well done|You were better],\" said {a}. \"I should not have [laughed at you|been so proud].\"",
    ]),
    "rainday": ("was happy when it rained", "a bad day can become a good one", [
        "It rained and rained. {a} [looked out of the window|sat at the window] and was [bored|sad]. \"I wanted to {do1},\" {a.he} said, \"[but now I can not|but it is too wet].\"",
        "\"[There is much to do inside|We can play here],\" said {a.his} {elder}. \"[Let us build something|Do you want to make a boat]?\"",
        "They took [an old box|paper and glue|a box and some rope] and made [a boat|a castle|a train]. {a} painted it {colour}.",
        "{b} came in with wet shoes and asked, \"[What is that|What are you making]?\" \"It is [our ship|for you too]! [Come aboard|Come and play],\" said {a}.",
        "They [sailed over the sea|travelled to far lands] and saw {sight1} and a big whale. [It was all a game, but it felt real|They laughed a lot].",
        "When the rain stopped, there was a rainbow [over the {place2}|in the sky]. It was red, orange, yellow, green, blue and purple.",
    ]),
    "gift": ("liked to give more than to get", "a small gift from the heart is the best gift", [
        "It was almost {b}'s birthday. {a} wanted to give {b.him} something, but {a.he} had no money.",
        "\"What can I give?\" {a.he} thought. {a.He} went to the {place} and looked [around|for something nice].",
        "{a.He} saw {sight1}, but that was not a gift. Then {a.he} found {look_thing2}.",
        "{a} [cleaned it|washed it] and [put it in a box|tied a {colour} ribbon around it]. {a.He} also [drew a picture|wrote a little poem].",
        "On the day of the birthday, [everyone brought a gift|{b} got many big gifts]. {a} was [shy|worried]. \"Mine is so small,\" {a.he} said.",
        "But when {b} opened it, {b.he} [smiled|was very happy]. \"[This is the best gift of all|I like it the most],\" {b.he} said, \"because you made it for me.\"",
    ]),
    "treasure": ("looked at the world with open eyes", "the best treasure is a good friend", [
        "{a} and {b} found an old map [{at_place}|in a box|behind a wall]. [There was a red cross on it|It showed the way to a treasure].",
        "\"[Let us go and find it|A treasure]!\" {said_glad} {b}.",
        "They walked [past the {place2}|over the bridge|through the tall grass] and [up the hill|along the river]. [It was a long way|They were soon tired].",
        "\"[Ten steps to the left|Five steps from the old tree],\" {a} read. They counted and began to dig.",
        "They dug and dug. [Then|At last] the spade hit something hard. It was [a small box|an old chest]!",
        "In the box there was {look_thing2} and a letter. It said: \"[The real treasure is the friend beside you|You found it together, so keep it together].\"",
        "{a} looked at {b}, and they both [laughed|smiled].",
    ]),
    "sick": ("knew how to make others feel better", "a kind word is good medicine", [
        "{b} was ill and had to stay in bed. {b.He} [could not play|had a cold|coughed all day].",
        "{a} [heard about it|missed {b.him}] and was sad. \"[I will visit {b.him}|I want to cheer {b.him} up],\" {a.he} said.",
        "{a.He} [cooked some soup|picked some flowers|took {food_an}] and [put it in a basket|went to the house of {b}].",
        "\"How are you?\" asked {a}. \"[Not so good|I feel weak|My head hurts],\" said {b}.",
        "{a} [told {b.him} a funny story|sang a song|sat beside the bed and read a book]. {b} [began to laugh|laughed for the first time that day].",
        "\"[You are better than any medicine|I feel better already],\" said {b}. After [two|three|four] days {b.he} was well again, and they went to the {place} together.",
    ]),
    "night": ("looked up at the stars every night", "the world is big and full of wonder", [
        "It was night. The moon was [round and bright|thin like a nail|white], and the stars [were shining|were out].",
        "{a} could not sleep. {a.He} [went to the window|opened the window|sat on the step] and looked up. \"How many stars are there?\" {a.he} asked.",
        "\"[More than you can count|As many as the grains of sand],\" said {a.his} {elder}.",
        "{a} began to count. \"One, two, three, four, five ...\" {a.He} counted to [twenty|one hundred], and then {a.he} began again.",
        "An owl [hooted|called] in the tree. A [cat|mouse] ran over the [grass|path]. [The wind was soft and warm|All the world was quiet].",
        "\"[Good night, stars|Good night, moon],\" whispered {a}. {a.His} eyes [closed|fell shut], and soon {a.he} was asleep.",
    ]),
    "harvest": ("thanked the farmer for every piece of bread", "a loaf of bread begins with one small grain", [
        "It was {harvest}, and the grain was [ripe|yellow and tall]. {a} went to the field with {a.his} {elder}.",
        "\"[Can I help|May I help]?\" asked {a}. \"Of course,\" said {a.his} {elder}. \"[Take this basket|You can carry the small sacks].\"",
        "They worked [from morning to evening|all day]. {weather2}.",
        "Then they took the grain to the mill. The miller [put it between two stones|smiled and opened the sack], and the stones turned [round and round|and turned]. Out came [white flour|soft flour].",
        "The baker mixed the flour with water and [salt|a little salt] and put the bread in the oven.",
        "When the bread was ready, it was [brown and warm|hot]. {a} gave a piece to {b}. \"[This was once a grain|I helped to make it],\" {a.he} said [proudly|with a smile].",
    ]),
    "music": ("played every evening", "music brings people together", [
        "{a} had [an old drum|a small flute|a little guitar]. {a.He} [played it every day|wanted to play it well].",
        "At first, the sound was [terrible|not nice at all]. [The neighbours closed their windows|Even the cat ran away].",
        "But {a} did not stop. {a.He} went to the {place} and played [where nobody could hear|for the birds].",
        "One day {b} heard it and [sat down to listen|began to sing]. \"[That was lovely|Play it again, please],\" said {b}.",
        "Now {a} played and {b} sang. Soon [other people came|all the animals came] and [danced|clapped their hands].",
        "\"[What a fine song|More, more]!\" they {said_glads}. {a} [turned red|smiled] and played one more song.",
    ]),
    "bridge": ("never fought about small things again", "two can do what one can not", [
        "{a} lived on one side of the river, and {b} lived on the other side. They [waved|called] to each other every day, but there was no bridge.",
        "\"[I wish we could play together|If only we had a bridge],\" said {a}. \"[Let us build one|We can make a bridge],\" said {b}.",
        "{a} brought [wood|long logs], and {b} brought [ropes|stones]. They [worked|built] for [three|four|five] days.",
        "On {day}, [a big rain came|a storm came] and took [the bridge|half of it] away. {a} was angry. \"[It is your fault|Your ropes were too thin]!\" {a.he} said.",
        "\"[No, it is your fault|Your logs were too short],\" said {b}. They went home [angry|without a word].",
        "The next morning, {a} [felt bad|was sorry]. {a.He} went to the river, and there was {b}. \"I am sorry,\" they both said at the same time, and then they [laughed|had to laugh].",
        "They built the bridge again, and this time it was [strong|wide and strong].",
    ]),
    "trick": ("did not believe every sweet word", "do not trust those who praise you too much", [
        "{a} had [a big piece of cheese|{food_an}] and sat on a [branch|high wall]. {b} was hungry and saw it.",
        "\"[Good morning|Hello], {a},\" said {b}. \"[How fine you look today|What a lovely voice you have]! [Will you sing a song for me|I would like to hear you sing].\"",
        "{a} was [very proud|pleased]. {a.He} opened {a.his} mouth to sing, and the food fell down.",
        "{b} [caught it|picked it up] and [ate it|laughed]. \"[Thank you for the meal|Your song was short, but the meal was good]!\" {b.he} said.",
        "{a} was [angry at first|hungry and sad]. Then {a.he} thought about it and [had to laugh|shook {a.his} head].",
    ]),
    "clean": ("cleaned up every evening", "a little work each day keeps the big work away", [
        "The room of {a} was a mess. There was {look_thing2} on the floor, a {toy} under the bed and {food_an} on the chair.",
        "\"Please clean your room,\" said {a.his} {elder}. \"[Later|Tomorrow],\" said {a}.",
        "Then {b} came and wanted to play with the {toy}. They looked and looked, but they could not find it [in the mess|anywhere].",
        "\"[I think we should clean up|Let us make a game of it],\" said {b}. \"Who can pick up more things?\"",
        "They [counted|sang while they worked]. \"One, two, three ...\" Soon the floor was [clean|empty], and the books stood on the shelf.",
        "And there was the {toy}! Now they could play. {a.His} {elder} [looked in and smiled|brought them milk and cake].",
    ]),
    "job": ("knew what {a.he} wanted to be", "every kind of work helps someone", [
        "\"What do you want to be when you grow up?\" asked {a.his} {elder}. {a} did not know.",
        "So {a.he} went through the village and asked everyone. The {job1} {does1}. \"[I like my work|It is good work],\" said the {job1}. \"[People need me|It makes people happy].\"",
        "Then {a} met the {job2}, who {does2} {where2}. \"[May I try|Can I help you]?\" asked {a}. \"[Yes, come in|Of course],\" said the {job2}, and gave {a.him} {tool2}.",
        "It was [not easy|hard], but {a} [liked it|learned fast]. {a.He} worked until [noon|the evening].",
        "At home, {a} said, \"I want to be {job2_an}!\" \"[That is a fine plan|Then you must learn a lot],\" said {a.his} {elder}.",
    ]),
    "pet": ("took good care of {pet_the}", "those who are small need our care", [
        "One [cold|rainy|windy] day, {a} found a [small|wet|hungry] {young} [near the {place2}|on the path|in front of the door]. It was [alone|cold|lost].",
        "\"[Where is your mother|Are you hungry]?\" asked {a}. The {young} looked at {a.him} with big eyes.",
        "{a} took it home and gave it [some food|a warm bed|water and {pet_food}]. \"[Can I keep it|May it stay]?\" {a.he} asked {a.his} {elder}.",
        "\"[It is a baby {pet_kind}|It needs its mother],\" said {a.his} {elder}. \"[It lives {pet_home}|Its home is {pet_home}]. First let it get strong.\"",
        "{a} fed it every day, and it grew. It [followed {a.him} everywhere|slept beside {a.his} bed].",
        "When it was strong, they took it back [{pet_home}|to its mother]. {a} was a little sad, but {a.he} knew that it was [right|happy there].",
    ]),
}
FEARS = {
    "the dark": "The dark garden was full of [stars|small lights]. A friendly owl sat in the tree.",
    "thunder": "The thunder was loud, but it was far away. It was only [noise|the voice of the clouds].",
    "the big dog": "The big dog wagged its tail. It only wanted to [play|say hello].",
    "the shadow on the wall": "The shadow was only [a coat on a hook|the branch of a tree]. It moved in the wind.",
    "the noise under the bed": "The noise was only [a little mouse|the cat]. It was more afraid than anyone.",
}
SKILLS = {
    "ride a bicycle": "fell on the grass", "swim": "swallowed a lot of water", "whistle": "made no sound at all",
    "fly a kite": "ran and ran, but the kite fell down", "skate": "fell on the ice", "climb the tall tree": "slipped down",
    "tie a knot": "made a big tangle", "write": "made only crooked lines", "dance": "stepped on every foot",
    "row a boat": "went round in a circle", "catch a ball": "dropped the ball",
}
BAKES = {"a cake": "cake", "a pie": "pie", "some bread": "bread", "pancakes": "pancakes", "honey cookies": "cookies"}
VASES = ["the blue vase", "the old lamp", "the big mirror", "the teapot", "the flower pot", "the window"]
OUTDOORS = "park forest beach garden market farm river hill lake".split()
SHE_ELDERS = ("mother", "grandmother", "aunt", "big sister")


def look_thing(rng: random.Random, thing: str, colour: str) -> str:
    words = [w for w in (rng.choice(LOOKS + [""]), colour) if w]
    return an(" ".join(words + [thing]))


def creature_of(someone: Someone) -> str:
    return "the " + someone.kind.split()[-1]


def slots_for(rng: random.Random, a: Someone, b: Someone, cast: Cast) -> dict:
    place2 = rng.choice(OUTDOORS)
    place = rng.choice([p for p in PLACES if p != place2])
    _, sights, acts = PLACES[place]
    sight1, sight2 = rng.sample(sights, 2)
    do1, do2 = rng.sample(acts, 2)
    colour, thing, food = rng.choice(COLOURS), rng.choice(SMALL_THINGS), rng.choice(list(FOODS))
    fear, skill, bake = rng.choice(list(FEARS)), rng.choice(list(SKILLS)), rng.choice(list(BAKES))
    elder, (job1, job2) = cast.elder(), rng.sample(list(JOBS), 2)
    day, day2 = rng.sample("Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split(), 2)
    pet = rng.choice(["fox", "rabbit", "owl", "hedgehog", "squirrel", "duck", "goat", "crow", "mouse", "sheep", "turtle"])
    b.a_the = creature_of(b)
    return dict(
        a=a, b=b, place=place, place2=place2, at_place=f"{PLACES[place][0]} the {place}",
        at_place2=f"{PLACES[place2][0]} the {place2}", sight1=sight1, sight2=sight2, do1=do1, do2=do2, colour=colour,
        thing=thing, look_thing=look_thing(rng, thing, colour), food=food, food_an=an(food), taste=FOODS[food][1],
        look_thing2=look_thing(rng, rng.choice(SMALL_THINGS), rng.choice(COLOURS + [""])), toy=rng.choice(TOYS),
        fear=fear, fear_answer=FEARS[fear], trying=rng.choice(["slept without a lamp", "was the first to go to bed", "was brave"]),
        skill=skill, fail=SKILLS[skill], bake=bake, bake_noun=BAKES[bake], vase=rng.choice(VASES),
        elder=elder, elder_he="she" if elder in SHE_ELDERS else "he", day=day, day2=day2, hobby=rng.choice(HOBBIES),
        season=rng.choice(list(SEASONS)), harvest=rng.choice(["autumn", "the end of summer", "harvest time"]),
        weather=rng.choice(WEATHER), weather2=rng.choice(["The sun was hot", "The work was hard", "They sang while they worked"]),
        grown=join([n + "s" for n in rng.sample(["bean", "pumpkin", "melon", "seed", "pea"], 1)]),
        pet=rng.choice(["the cat", "the dog", "the wind"]), pet_kind=pet, young=ANIMALS[pet][1], pet_home=ANIMALS[pet][2],
        pet_food=ANIMALS[pet][3], pet_the="every animal", job1=job1, job2=job2, does1=JOBS[job1][0], does2=JOBS[job2][0],
        where2=JOBS[job2][1], tool2=JOBS[job2][2], job2_an=an(job2), said_glad=rng.choice(["said", "cried", "laughed", "shouted"]),
        said_glads=rng.choice(["said", "cried", "shouted"]),
    )


ANIMAL_ONLY = {"trick"}
CHILD_ONLY = {"broke", "bake", "harvest", "job", "pet", "trip", "clean", "rainday"}


def story(rng: random.Random, hero: str = "") -> str:
    """One story; `hero` is the name of an animal for stories on request, or "child"."""
    cast = Cast(rng)
    names = [n for n in PLOTS if not (hero and hero != "child" and n in CHILD_ONLY)]
    if hero == "child":
        names = [n for n in names if n not in ANIMAL_ONLY]
    name = rng.choice(names)
    if name in ANIMAL_ONLY or (hero and hero != "child"):
        a = cast.animal(hero if hero != "child" else "")
    elif name in CHILD_ONLY or hero == "child":
        a = cast.child()
    else:
        a = cast.anyone()
    b = cast.animal() if name in ("stuck", "trick") else (cast.animal() if a.name not in cast.used else cast.anyone())
    slots = slots_for(rng, a, b, cast)
    lesson, proverb, body = PLOTS[name]
    parts = [rng.choice(OPENINGS)] + body
    # The middle may lose one sentence that nothing later depends on; tellings differ in length.
    ending = rng.choice([m for m in MORALS if "friends from" not in m or "{b}" in " ".join(body)])
    slots["proverb"] = proverb
    slots["lesson"] = expand(rng, lesson, **slots)
    slots["lesson"] = slots["lesson"][0].lower() + slots["lesson"][1:]
    slots["fear_answer"] = expand(rng, slots["fear_answer"])
    text = [expand(rng, part, **slots) for part in parts + [ending]]
    return paragraphs(rng, text)


def paragraphs(rng: random.Random, sentences: list[str]) -> str:
    """One paragraph, or two or three."""
    style = rng.random()
    if style < 0.4:
        return " ".join(sentences)
    if style < 0.7:
        cut = rng.randrange(1, len(sentences) - 1)
        return " ".join(sentences[:cut]) + "\n\n" + " ".join(sentences[cut:])
    cuts = sorted(rng.sample(range(1, len(sentences)), 2))
    pieces = [sentences[: cuts[0]], sentences[cuts[0] : cuts[1]], sentences[cuts[1] :]]
    return "\n\n".join(" ".join(p) for p in pieces)
