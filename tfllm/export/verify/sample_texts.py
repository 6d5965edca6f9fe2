"""Sample texts of our own: what an export is checked, calibrated and warmed up with.

Built-in sentences are used where no data is given: many scripts, styles and edge cases, which every
exported model must tokenize and answer like its checkpoint. Passages are English and Chinese prose
(news, letters, recipes, stories, explanations), on which perplexity and KL divergence are measured.
All were written for this project.
"""

from __future__ import annotations

from tfllm.runtimes.protocols import Example
from tfllm.tasks.base import Task

ASCII_SENTENCES = (
    "A warm, funny film that never talks down to its audience.",
    "The plot falls apart in the last half hour.",
    "I would not recommend this restaurant to anyone.",
    "Great value for the price, and it arrived two days early.",
    "The battery died after three weeks.",
    "Two hours long and it felt like four!",
    "Not bad at all; I have seen far worse.",
    "It's fine. Nothing more, nothing less.",
    "Where can I buy a ticket to the airport?",
    "The committee will meet on 3 March 2024 at 10:30 a.m.",
    "She said: \"Don't wait for me, I'll be late.\"",
    "Prices rose by 4.75% to $1,299.00 last quarter.",
    "def main(argv): return sum(int(x) for x in argv[1:])",
    "See https://example.org/a/b?c=d&e=f#g or write to info@example.org",
    "ALL CAPITAL LETTERS, then none at all",
    "What a strange, slow, beautiful piece of music",
    "The quick brown fox jumps over the lazy dog",
    "Unbelievably over-complicated antidisestablishmentarianism",
    "yes",
    "!!! ??? ...",
    "The service was slow but the food made up for it, and the view over the harbour at night is "
    "worth every minute of the drive from town, even when it rains.",
    "My grandmother's recipe needs two eggs, a cup of flour, sugar, a pinch of salt and patience.",
    "The new phone is lighter than the old one but the screen scratches easily.",
    "He scored twice in the first half and was sent off in the second.",
)
UNICODE_SENTENCES = (
    "这家餐厅的服务态度很好，菜也很好吃。",
    "手机电池用了三个星期就坏了，太失望了！",
    "電影的最後半小時讓人非常感動。",
    "Café, naïve, résumé, Zürich, Ångström, São Paulo",
    "İstanbul'da güzel bir gün; straße und Fußgänger",
    "Привет, как дела? Ещё не поздно.",
    "こんにちは、世界。カタカナとひらがな",
    "한국어 문장도 읽을 수 있어야 합니다.",
    "مرحبا بالعالم، كيف حالك؟",
    "Καλημέρα κόσμε",
    "emoji 😀 👩‍👩‍👧 and symbols ½ ﬁ Ⅳ № ™ €",
    "tabs\tand  several   spaces and a line\nbreak",
    "zero\u200bwidth, soft\u00adhyphen, full\u3000width space",
    "[MASK] and [SEP] written in the text",
    "",
)
SENTENCES = ASCII_SENTENCES + UNICODE_SENTENCES

CONTEXT = (
    "The lighthouse on the northern cape was built in 1871 by the engineer Anna Holm. It stands 34 "
    "metres high and its light can be seen from 19 nautical miles. Since 1988 it works without a "
    "keeper, and in summer visitors may climb its 162 steps."
)
QUESTIONS = (
    "Who built the lighthouse?",
    "When was the lighthouse built?",
    "How high is it?",
    "Since when does it work without a keeper?",
    "How many steps are there?",
    "What is the capital of France?",
)

ENGLISH = (
    "The ferry leaves the northern pier at seven every morning except on Sundays, when the "
    "crew sleeps late and the first crossing is at nine. Tourists line up early because the "
    "open deck fills within minutes, while the people who live on the island wait in the "
    "cafe and walk aboard just before the ropes are taken in.",
    "To make the soup, chop two onions and fry them slowly in butter until they are golden. "
    "Add four carrots, a stick of celery and a litre of stock, bring it to the boil, and let "
    "it simmer for half an hour. Taste before you add salt; the stock is often salty enough.",
    "Dear Mrs Okafor, thank you for your letter of 14 May. We have looked into the delay of "
    "your parcel and found that it was sent to our warehouse in Leeds by mistake. It will "
    "reach you by Thursday at the latest, and we have refunded the cost of the delivery.",
    "A glacier moves because ice deforms under its own weight. Near the surface it is "
    "brittle and breaks into crevasses, but fifty metres down the pressure is so great that "
    "crystals slide past one another, and the whole mass creeps downhill by a few "
    "centimetres a day.",
    '"You forgot the tickets," she said. "I did not forget them," he answered, patting one '
    'pocket after another. "I put them somewhere safe." They stood under the clock for a '
    "while, and then they both began to laugh, because the train had already gone.",
    "Shares of the company fell by 6.3 per cent on Tuesday after it said that profits for "
    "the year would be lower than expected. The chief executive blamed higher energy prices "
    "and weak demand in Europe. Analysts had forecast earnings of 2.10 dollars a share; the "
    "new estimate is 1.75.",
    "In the first version of the program every request opened its own connection to the "
    "database, which worked well with ten users and failed with a thousand. The second "
    "version keeps a pool of twenty connections and lets requests wait for a free one; if "
    "none is free after two seconds, the request is refused and the client tries again later.",
    "My grandfather kept bees behind the old school. He talked to them as he worked, never "
    "loudly, and was stung perhaps twice in a summer. When he died we found forty years of "
    "notes about the weather, the flowering of the lime trees and the weight of every hive.",
    "The parliament voted narrowly for the bill last night, by 201 votes to 196. It gives "
    "tenants the right to stay in their homes for at least five years and limits how much "
    "the rent may rise. Owners of houses say that the law goes too far, and some of them "
    "want to go to court.",
    "Wash your hands, dry the wound with a clean cloth and press gently until it no longer "
    "bleeds. If the cut is deep, if it was made by something dirty, or if the pain gets "
    "worse after a day, see a doctor.",
    "Nobody knew who had painted the mural. It appeared during the night on the wall of the "
    "bank: a blue horse, five metres tall, looking over its shoulder at whoever came out of "
    "the door. The manager wanted it removed, but by noon there was a crowd, and by evening "
    "a petition.",
    "The match was decided in the last minute. With the score at two all, the goalkeeper ran "
    "the length of the field for a corner kick, met the ball with his head and saw it bounce "
    "off the post, off a defender and over the line.",
)
CHINESE = (
    "清晨五点，菜市场已经热闹起来了。卖豆腐的老王把摊子支在老地方，一边打招呼一边切豆腐，刀起"
    "刀落，每一块都差不多大小。他说做这行三十年，最怕的不是早起，而是下雨天没有客人。",
    "这台洗衣机买了不到半年就开始漏水，打了三次客服电话才有人上门。师傅态度不错，换了一根管子"
    "，十分钟就修好了，但是我觉得这么贵的机器不应该出这种问题。",
    "北京时间六月八日上午，中国队在游泳世界杯男子四乘一百米接力决赛中以三分十秒二六的成绩获得"
    "冠军，比第二名快了零点四秒。赛后队员们表示，最后一棒的超越来自平时成千上万次的训练。",
    "水为什么会结冰？当温度降到零度以下时，水分子运动变慢，彼此之间排列成规则的六角形结构。这"
    "种结构比液态时占的空间更大，所以冰会浮在水面上，湖里的鱼也因此能够过冬。",
    "王老师：您好！我是三年级二班李小明的妈妈。孩子昨天晚上发烧，今天需要在家休息，请一天假。"
    "落下的作业我们会在周末补上，麻烦您把练习册的页码发给我。谢谢！",
    "小镇的尽头有一座石桥，桥下的河水夏天很浅，孩子们挽起裤脚就能走到对岸。到了秋天，上游的落"
    "叶一片一片漂下来，像许多小船。奶奶常说，她就是沿着这条河嫁过来的，那时候还没有公路。",
    "公司今年第三季度的营业收入为十二点五亿元，同比增长百分之八，净利润却下降了百分之三。财务"
    "负责人解释说，原材料价格上涨和汇率波动是主要原因，预计明年上半年情况会有所好转。",
    "“你怎么又迟到了？”她把茶杯放下，看了看墙上的钟。“路上堵车，”他一边脱外套一边说，“而且我"
    "在楼下遇见了你的老同学，聊了几句。”她笑了：“那你告诉我，他现在做什么工作？”",
    "做红烧肉要选肥瘦相间的五花肉，先冷水下锅焯一遍，撇去浮沫。锅里放少许油和冰糖，小火炒出糖"
    "色，再把肉倒进去翻炒，加姜片、八角、酱油和热水，盖上盖子炖一个小时，最后大火收汁。",
    "考古队在河边发现了一处距今约四千年的村落遗址，出土陶器三百多件，其中一只彩陶罐上画着两条"
    "鱼。专家认为，当时的人已经会种水稻、养猪，并且用贝壳和远方的部落交换玉石。",
    "手机自动更新以后，通讯录里的照片全部不见了，重启也没有用。我按照网上的办法清除了缓存，照"
    "片又回来了，不过常用联系人的顺序乱了，希望下一个版本能够修复。",
    "他把信纸铺平，想了很久，只写下一句话：今年的桂花开得特别早，你什么时候回来？",
)
PASSAGES = {"English": ENGLISH, "Chinese": CHINESE}
PASSAGE_QUESTIONS = {"English": "What is this text about?", "Chinese": "这段话讲的是什么？"}


def sentence_examples(task: Task, ascii_only: bool = False) -> list[Example]:
    """Return the sentences as examples of a task."""
    sentences = ASCII_SENTENCES if ascii_only else SENTENCES
    if task.required_fields[0] == ("question", "context"):
        return [{"question": question, "context": CONTEXT} for question in QUESTIONS]
    if task.required_fields[0] == ("words",):
        return [{"words": text.split()} for text in sentences if text.split()]
    pairs = sentences[1:] + sentences[:1]
    if task.takes_pair:
        return [{"text": a, "text_pair": b} for a, b in zip(sentences, pairs, strict=True)]
    return [{"text": text} for text in sentences]


def passage_examples(task: Task) -> list[Example]:
    """Return the passages as examples of a task."""
    pairs = [(PASSAGE_QUESTIONS[name], text) for name, texts in PASSAGES.items() for text in texts]
    if task.required_fields[0] == ("question", "context"):
        return [{"question": question, "context": text} for question, text in pairs]
    if task.required_fields[0] == ("words",):
        return [{"words": text.split()} for _, text in pairs]
    if task.takes_pair:
        return [{"text": question, "text_pair": text} for question, text in pairs]
    return [{"text": text} for _, text in pairs]
