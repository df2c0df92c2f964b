"""Tables of facts, names and questions for the demo model's modern-English training text. Data only.

A table has field names and one row a line, columns separated by '|'. How templates refer to it: templates.py.
"""

RECORDS: dict[str, tuple[tuple[str, ...], str]] = {
    "country": (
        ("name", "capital", "continent", "language", "people", "food", "sight"),
        """
        France|Paris|Europe|French|French|bread and cheese|the Eiffel Tower
        Germany|Berlin|Europe|German|Germans|bread and sausages|the Brandenburg Gate
        Italy|Rome|Europe|Italian|Italians|pizza and pasta|the Colosseum
        Spain|Madrid|Europe|Spanish|Spanish|rice with seafood|the Prado Museum
        Portugal|Lisbon|Europe|Portuguese|Portuguese|grilled fish|the old yellow trams
        England|London|Europe|English|English|fish and chips|the Tower of London
        Ireland|Dublin|Europe|English and Irish|Irish|potato soup|the green hills
        Scotland|Edinburgh|Europe|English|Scots|oatmeal and salmon|the old castle on the rock
        Norway|Oslo|Europe|Norwegian|Norwegians|salmon and brown cheese|the deep fjords
        Sweden|Stockholm|Europe|Swedish|Swedes|meatballs and berries|the islands of the capital
        Finland|Helsinki|Europe|Finnish|Finns|rye bread and fish|the northern lights
        Denmark|Copenhagen|Europe|Danish|Danes|open sandwiches|the statue of the little mermaid
        Poland|Warsaw|Europe|Polish|Poles|dumplings and soup|the old market square
        Austria|Vienna|Europe|German|Austrians|apple cake and schnitzel|the opera house
        Switzerland|Bern|Europe|German, French and Italian|Swiss|cheese and chocolate|the high Alps
        Greece|Athens|Europe|Greek|Greeks|olives and fresh salad|the Parthenon
        Hungary|Budapest|Europe|Hungarian|Hungarians|goulash|the bridges over the Danube
        the Netherlands|Amsterdam|Europe|Dutch|Dutch|cheese and pancakes|the canals and windmills
        Belgium|Brussels|Europe|Dutch and French|Belgians|waffles and chocolate|the great market square
        Iceland|Reykjavik|Europe|Icelandic|Icelanders|fish and lamb|the hot springs and volcanoes
        Turkey|Ankara|Asia|Turkish|Turks|grilled lamb and tea|the old bazaars
        Egypt|Cairo|Africa|Arabic|Egyptians|beans and flat bread|the pyramids
        Morocco|Rabat|Africa|Arabic|Moroccans|couscous and mint tea|the colourful markets
        Kenya|Nairobi|Africa|Swahili and English|Kenyans|maize and beans|the wide plains with lions
        Ethiopia|Addis Ababa|Africa|Amharic|Ethiopians|flat bread with spicy sauce|the high mountains
        Ghana|Accra|Africa|English|Ghanaians|rice and fried plantain|the long beaches
        Japan|Tokyo|Asia|Japanese|Japanese|rice and raw fish|Mount Fuji
        China|Beijing|Asia|Chinese|Chinese|noodles and dumplings|the Great Wall
        India|New Delhi|Asia|Hindi and English|Indians|rice and lentils|the Taj Mahal
        Thailand|Bangkok|Asia|Thai|Thais|spicy soup and rice|the golden temples
        Vietnam|Hanoi|Asia|Vietnamese|Vietnamese|noodle soup|the green rice fields
        South Korea|Seoul|Asia|Korean|Koreans|rice and pickled cabbage|the royal palaces
        Nepal|Kathmandu|Asia|Nepali|Nepalis|rice and lentils|Mount Everest
        Canada|Ottawa|North America|English and French|Canadians|pancakes with maple syrup|Niagara Falls
        the United States|Washington|North America|English|Americans|burgers and apple pie|the Grand Canyon
        Mexico|Mexico City|North America|Spanish|Mexicans|tortillas and beans|the old stone pyramids
        Cuba|Havana|North America|Spanish|Cubans|rice and black beans|the bright old cars
        Brazil|Brasilia|South America|Portuguese|Brazilians|rice and black beans|the Amazon rainforest
        Argentina|Buenos Aires|South America|Spanish|Argentines|grilled beef|the glaciers of the south
        Peru|Lima|South America|Spanish|Peruvians|potatoes and fresh fish|the ruins of Machu Picchu
        Chile|Santiago|South America|Spanish|Chileans|corn and seafood|the driest desert in the world
        Australia|Canberra|Australia|English|Australians|grilled meat and fruit|the Great Barrier Reef
        New Zealand|Wellington|Oceania|English and Maori|New Zealanders|lamb and kiwi fruit|the snowy mountains
        """,
    ),
    "person": (
        ("name", "they", "them", "their", "child"),
        """
        Anna|she|her|her|girl
        Maria|she|her|her|girl
        Emma|she|her|her|girl
        Julia|she|her|her|girl
        Sarah|she|her|her|girl
        Laura|she|her|her|girl
        Lucy|she|her|her|girl
        Clara|she|her|her|girl
        Nina|she|her|her|girl
        Sofia|she|her|her|girl
        Mina|she|her|her|girl
        Alice|she|her|her|girl
        Grace|she|her|her|girl
        Helen|she|her|her|girl
        Rosa|she|her|her|girl
        Amina|she|her|her|girl
        Priya|she|her|her|girl
        Mei|she|her|her|girl
        Ingrid|she|her|her|girl
        Kate|she|her|her|girl
        Tom|he|him|his|boy
        Peter|he|him|his|boy
        David|he|him|his|boy
        John|he|him|his|boy
        Paul|he|him|his|boy
        Daniel|he|him|his|boy
        Max|he|him|his|boy
        Leo|he|him|his|boy
        Sam|he|him|his|boy
        Ben|he|him|his|boy
        Omar|he|him|his|boy
        Ravi|he|him|his|boy
        Kenji|he|him|his|boy
        Carlos|he|him|his|boy
        Erik|he|him|his|boy
        Lucas|he|him|his|boy
        Henry|he|him|his|boy
        George|he|him|his|boy
        Mark|he|him|his|boy
        Jack|he|him|his|boy
        """,
    ),
    "job": (
        ("name", "place", "work", "like"),
        """
        teacher|at a school|teach children to read and write|I can see my pupils learn something new every day
        doctor|in a hospital|help people who are ill|I can make people feel better
        nurse|in a hospital|take care of sick people|every patient has a story to tell
        farmer|on a farm|grow wheat and keep cows|I can work outside in the fresh air
        baker|in a bakery|bake bread before the sun rises|the whole street smells of fresh bread
        cook|in a restaurant|cook dinner for many guests|good food makes people happy
        engineer|in a large office|build bridges and tunnels|I like to solve hard problems
        programmer|for a small company|write software for computers|every bug is a little puzzle
        scientist|at a university|study how plants grow|there is always a new question
        librarian|in a library|help people find good books|I am surrounded by stories
        musician|in an orchestra|play the violin|music needs no words
        painter|in a studio|paint pictures of the sea|no two days have the same light
        writer|in a quiet room|write books for children|I can invent whole worlds
        gardener|in a public park|plant flowers and cut the hedges|I can watch things grow
        fisherman|in a harbour|catch fish in the cold sea|I love the sea in the morning
        pilot|at an airport|fly planes across the ocean|the world looks small and peaceful from above
        bus driver|in a big city|drive the number nine bus|I meet many people on the way
        carpenter|in a workshop|make tables and chairs out of wood|I can see what I have made
        student|at a university|study history and languages|I enjoy learning new things
        shopkeeper|in a village shop|sell fruit, bread and newspapers|I know everybody in the village
        journalist|for a newspaper|write about life in the city|no day is like the other
        photographer|in the mountains|take pictures of wild animals|I can be alone with nature
        """,
    ),
    "animal": (
        ("name", "home", "food", "fact"),
        """
        cat|a house|mice and fish|It sleeps for most of the day
        dog|a house|meat and biscuits|It can smell much better than a human
        horse|a stable|grass and hay|It can sleep while it is standing
        cow|a farm|grass|It gives milk, from which we make butter and cheese
        bee|a hive|nectar from flowers|It makes honey and helps plants to grow
        lion|the grassland of Africa|meat|It lives with its family in a group called a pride
        elephant|the forests and plains of Africa and Asia|leaves and fruit|It is the largest animal on land
        whale|the ocean|tiny animals and fish|It is a mammal and must come up to breathe
        dolphin|the sea|fish|It is very clever and likes to play
        penguin|the cold south|fish|It is a bird that swims but cannot fly
        owl|the forest|mice|It hunts at night and can turn its head very far
        eagle|the mountains|small animals|It can see a mouse from high above
        frog|a pond|insects|It begins its life in the water as a tadpole
        spider|a web|flies|It has eight legs and is not an insect
        rabbit|a hole in the ground|grass and carrots|It has long ears and strong back legs
        bear|the forest|berries, honey and fish|It sleeps through the cold winter
        wolf|the forest|meat|It hunts together with its pack
        camel|the desert|dry plants|It can live for many days without water
        giraffe|the plains of Africa|leaves from tall trees|It is the tallest animal in the world
        kangaroo|Australia|grass|It carries its young in a pouch
        turtle|the sea|plants and jellyfish|It can live for more than a hundred years
        snail|the garden|leaves|It carries its house on its back
        """,
    ),
    "qa": (
        ("question", "answer"),
        """
        What colour is the sky?|The sky is blue on a clear day, because the air scatters blue light more than red light.
        Why is the sky blue?|The sky is blue because the air scatters blue light more than the other colours.
        What is water made of?|Water is made of hydrogen and oxygen.
        At what temperature does water boil?|Water boils at one hundred degrees Celsius.
        At what temperature does water freeze?|Water freezes at zero degrees Celsius.
        How many days are in a week?|There are seven days in a week.
        How many months are in a year?|There are twelve months in a year.
        How many days are in a year?|A year has three hundred and sixty-five days, and a leap year has one more.
        How many hours are in a day?|There are twenty-four hours in a day.
        How many minutes are in an hour?|There are sixty minutes in an hour.
        How many legs does a spider have?|A spider has eight legs.
        How many legs does an insect have?|An insect has six legs.
        What is the largest planet?|Jupiter is the largest planet of our solar system.
        Which planet is closest to the sun?|Mercury is the planet closest to the sun.
        Which planet is called the red planet?|Mars is called the red planet, because its ground is full of rust.
        How many planets are there?|There are eight planets in our solar system.
        What is the moon?|The moon is a ball of rock that goes around the earth once in a month.
        What is the sun?|The sun is a star. It gives light and warmth to the earth.
        What is a star?|A star is a huge ball of hot gas that shines by its own light.
        What is gravity?|Gravity is the force that pulls things towards each other. It keeps us on the ground.
        What is the tallest mountain?|Mount Everest is the tallest mountain in the world.
        What is the longest river?|The Nile and the Amazon are the longest rivers in the world.
        What is the largest ocean?|The Pacific Ocean is the largest ocean in the world.
        What is the largest animal?|The blue whale is the largest animal that has ever lived.
        What is the fastest animal on land?|The cheetah is the fastest animal on land.
        Why do we sleep?|We sleep so that our body and our mind can rest.
        Why do leaves fall in autumn?|Trees drop their leaves in autumn to save water during the winter.
        Why is the sea salty?|Rivers carry a little salt from the rocks into the sea, and it stays there.
        What is a rainbow?|A rainbow is sunlight that drops of rain have split into its colours.
        What are the colours of the rainbow?|The colours of the rainbow are red, orange, yellow, green, blue and violet.
        What is bread made of?|Bread is made of flour, water, salt and yeast.
        What is cheese made of?|Cheese is made of milk.
        What do plants need to grow?|Plants need light, water, air and good soil.
        What is paper made of?|Paper is made of wood.
        What is glass made of?|Glass is made of sand that was melted in a hot fire.
        What is a computer?|A computer is a machine that follows instructions and works with numbers very fast.
        What is a program?|A program is a list of instructions that tells a computer what to do.
        What is the internet?|The internet is a network that connects computers all over the world.
        What is artificial intelligence?|Artificial intelligence is software that does things which seem to need a mind.
        What is AI?|AI means artificial intelligence. It is software that learns from examples.
        What is a language model?|A language model is a program that has read a lot of text and predicts the next word.
        What is machine learning?|Machine learning means that a computer learns from examples instead of fixed rules.
        What is a robot?|A robot is a machine that can move and do work by itself.
        What is a token?|A token is a small piece of text, such as a word or a part of a word.
        What is music?|Music is the art of putting sounds together in time.
        What is love?|Love is a deep feeling of care for another person.
        What is a friend?|A friend is someone who likes you and helps you when you need it.
        What is the meaning of life?|Many people say that it is to love, to learn and to help each other.
        What is democracy?|Democracy means that the people choose their own government.
        Who is the president of the United States?|I do not know that, but the president lives in the White House.
        Who wrote Pride and Prejudice?|Jane Austen wrote Pride and Prejudice.
        Who wrote Hamlet?|William Shakespeare wrote Hamlet.
        Who painted the Mona Lisa?|Leonardo da Vinci painted the Mona Lisa.
        Who was Albert Einstein?|Albert Einstein was a scientist who changed the way we think about space and time.
        Who was Marie Curie?|Marie Curie was a famous scientist who discovered radium.
        """,
    ),
    "talk": (
        ("question", "answer"),
        """
        Who are you?|I am a small language model. I live in a demo, and I like short questions.
        What are you?|I am a very small language model that was made to show how serving works.
        What is your name?|I have no real name. You can call me the demo model.
        How old are you?|I am quite new. I was trained only a little while ago.
        Are you human?|No, I am not human. I am a small computer program.
        Can you help me?|Yes, I will try. Please ask me a short question.
        What can you do?|I can answer simple questions, tell little stories and talk about countries and animals.
        Do you like music?|I cannot hear music, but many people tell me that it is wonderful.
        How are you?|I am fine, thank you. How are you?
        How are you today?|I am very well today, thank you for asking.
        What time is it?|I am sorry, but I have no clock. Please look at your watch.
        What day is it today?|I am sorry, but I do not know what day it is today.
        What is the weather like?|I cannot look out of the window, but I hope that the sun is shining.
        What should I eat for dinner?|How about a warm soup with fresh bread?
        What should I read?|You could read a novel by Jane Austen. Her books are funny and wise.
        How do I make tea?|Boil some water, pour it over the tea leaves, and wait for three minutes.
        How do I boil an egg?|Put the egg into boiling water and wait for about seven minutes.
        How can I sleep better?|Go to bed at the same time every day, and leave your phone in another room.
        How can I learn a language?|Practise a little every day, read simple books and talk to people.
        How can I stay healthy?|Eat good food, drink water, sleep enough and go for a walk every day.
        Hello!|Hello! How can I help you today?
        Hello|Hello! What would you like to talk about?
        Hi|Hi! How can I help you?
        Hi there!|Hi! It is nice to meet you.
        Good morning!|Good morning! I hope you slept well.
        Good evening!|Good evening! How was your day?
        Good night!|Good night! Sleep well.
        Thank you!|You are welcome!
        Thanks a lot.|You are welcome. I am happy to help.
        Goodbye!|Goodbye! Have a nice day.
        """,
    ),
    "sum": (
        ("a", "b", "total"),
        """
        one|one|two
        one|two|three
        two|two|four
        two|three|five
        three|three|six
        three|four|seven
        four|four|eight
        four|five|nine
        five|five|ten
        five|six|eleven
        six|six|twelve
        seven|six|thirteen
        seven|seven|fourteen
        eight|seven|fifteen
        eight|eight|sixteen
        nine|eight|seventeen
        nine|nine|eighteen
        ten|ten|twenty
        """,
    ),
    "field": (
        ("name", "people", "goal"),
        """
        medicine|doctors|find illnesses early and choose the right treatment
        education|teachers|give every child the help that it needs
        science|scientists|test new ideas in days instead of years
        farming|farmers|use less water and grow more food
        transport|drivers|make the roads safer and quieter
        energy|engineers|save power and use more wind and sun
        translation|travellers|understand people in every country
        music|musicians|try out new sounds and melodies
        software|programmers|write better programs with fewer mistakes
        weather forecasting|sailors|know about a storm many days before it comes
        law|lawyers|read long documents in a few seconds
        art|artists|turn an idea into a picture
        """,
    ),
}
