"""Passages that any cleaning of text for training should keep; written for this purpose."""

CLEAN: dict[str, tuple[str, ...]] = {
  "en": (
    (
      "The ferry leaves the harbour twice a day in winter and five times in summer. "
      "Passengers who bring a bicycle should arrive half an hour early, because the "
      "lower deck fills up quickly. The crossing takes about fifty minutes when the sea "
      "is calm.\n\nOn the island there is one small shop that sells bread, fruit and "
      "newspapers. Most visitors walk to the lighthouse first, which is an hour from the "
      "pier along the cliffs. The keeper's house has been turned into a museum, and the "
      "view from its garden is worth the climb. The last boat back waits for nobody, so "
      "people are careful to be on time."
    ),
    (
      "Bread needs only four ingredients, but it also needs patience. Mix the flour with "
      "water and let it rest for an hour before you add the salt and the yeast. This "
      "pause lets the flour take up the water, and the dough becomes much easier to "
      "handle.\n\nFold the dough every thirty minutes instead of kneading it. After the "
      "fourth fold it should feel smooth and hold its shape. Leave it in a cool place "
      "overnight. In the morning, heat the oven with a heavy pot inside, and bake the "
      "loaf under the lid for the first half of the time. The crust will crackle when it "
      "cools."
    ),
    (
      "When the railway reached the valley in 1872, the town changed within a few years. "
      "Farmers who had sold their milk to neighbours now sent it to the city before "
      "breakfast. A factory for agricultural machines opened beside the station, and "
      "workers came from villages that were two days away on foot.\n\nNot everyone was "
      "pleased with the new line. The owners of the coaching inns lost their trade, and "
      "one of them wrote angry letters to the newspaper for a decade. His inn still "
      "stands, though it is a library today. The letters are kept there in a glass case, "
      "together with the last timetable of the mail coach."
    ),
    (
      "Bees find their way home by the position of the sun, even when clouds hide it. "
      "They see the direction in which light is polarised, and this pattern in the sky "
      "tells them where the sun must be. Experiments with mirrors have shown how exact "
      "this sense is.\n\nA bee that has found flowers dances on the comb to tell the "
      "others. The angle of the dance shows the direction, and its length shows the "
      "distance. Young bees watch several dances before they fly out for the first time. "
      "They make mistakes at first, but after a few days they find the flowers as "
      "quickly as the old ones do."
    ),
    (
      "The council has decided to repair the old bridge rather than replace it. "
      "Engineers examined every stone during the spring and found that the arches are "
      "sound, although the road on top of them has sunk. The work will begin in April "
      "and should be finished before the autumn rain.\n\nDuring that time, cars will use "
      "the bridge by the mill, while pedestrians can cross on a wooden path beside the "
      "building site. Shops in the lower street will stay open. A meeting for residents "
      "is planned for next Thursday, at which the plans will be shown and questions "
      "answered by the engineers who wrote the report."
    ),
    (
      "My grandmother kept a notebook in which she wrote down the weather of every day "
      "for forty years. She noted the first frost, the return of the swallows and the "
      "height of the river. Nobody asked her to do it, and she never explained why she "
      "had started.\n\nLast year a student at the university read all of it and compared "
      "it with the official records. The notebook was right on most days, and it filled "
      "a gap of three years for which the station had no measurements. My grandmother "
      "would have laughed about that. She always said that the thermometer at the "
      "station hung on the wrong wall."
    ),
    (
      "Learning to read music is easier than most adults believe. The five lines stand "
      "for notes, and the spaces between them stand for the notes in between. If you can "
      "count to seven and then begin again, you already know the most important "
      "rule.\n\nStart with one hand and a slow song that you know by heart. Say the "
      "names of the notes aloud while you play them. After two weeks you will not need "
      "to say them any more, since your fingers will remember the way. It helps to "
      "practise for ten minutes every day instead of two hours on Sunday, because memory "
      "grows while you sleep."
    ),
    (
      "A good map leaves out far more than it shows. Someone who walks in the mountains "
      "wants to know about paths, springs and steep ground, whereas a driver needs roads "
      "and little else. The art of making maps is therefore the art of choosing what a "
      "particular reader can do without.\n\nOlder maps show this very clearly. Sailors "
      "drew the coast with great care and left the inland empty, apart from a church "
      "tower that could be seen from the sea. Tax collectors drew the fields and forgot "
      "the hills. Today a computer holds everything at once, but somebody still has to "
      "decide what appears on the screen."
    ),
  ),
  "zh": (
    (
      "渡船冬天每天开两班，夏天每天开五班。带自行车的乘客应该提前半小时到达，"
      "因为下层甲板很快就会坐满。海面平静的时候，航程大约需要五十分钟。"
      "岛上只有一家小商店，出售面包、水果和报纸。大多数游客先步行去灯塔，"
      "从码头沿着悬崖走大约一个小时。守塔人的房子已经改成了博物馆，"
      "从花园里看到的风景很值得一看。最后一班船不会等人，所以大家都很守时。"
    ),
    (
      "做面包只需要四种材料，但是也需要耐心。先把面粉和水混合，静置一个小时，"
      "然后再加入盐和酵母。这段时间可以让面粉充分吸收水分，面团会变得更容易处理。"
      "每隔三十分钟折叠一次面团，不必用力揉。折叠四次以后，面团应该光滑而有弹性。"
      "把它放在阴凉的地方过夜。第二天早上先把烤箱和铸铁锅一起预热，"
      "前一半时间盖着盖子烘烤。出炉以后，面包皮会发出轻轻的响声。"
    ),
    (
      "一八七二年铁路修到山谷以后，小镇在几年之内就变了样。以前农民只把牛奶卖给邻居，"
      "现在可以在早饭以前送到城里。火车站旁边开了一家农业机械厂，"
      "工人来自步行要走两天的村庄。不是每个人都喜欢这条新铁路。驿站的老板们失去了生意，"
      "其中一位连续十年给报社写信抱怨。他的驿站今天还在，只是已经变成了图书馆。"
      "那些信放在玻璃柜里，旁边是最后一张邮车时刻表。"
    ),
    (
      "市政府决定修复旧桥，而不是拆掉重建。工程师在春天检查了每一块石头，发现桥拱很结实，"
      "只是上面的路面已经下沉。工程将在四月开始，应该在秋雨来临以前完成。在此期间，"
      "汽车可以从磨坊旁边的桥通过，行人可以走工地旁边的木板路。下街的商店照常营业。"
      "居民会议定在下星期四举行，会上将展示设计图，并由撰写报告的工程师回答问题。"
    ),
    (
      "我的祖母有一本笔记，她在四十年里每天都记下天气。她记录第一次霜冻、"
      "燕子回来的日子和河水的高度。没有人要求她这样做，她也从来没有解释过原因。"
      "去年一位大学生读完了全部内容，并且和官方记录做了比较。大多数日子里笔记都是对的，"
      "而且补上了气象站缺失的三年数据。祖母如果知道这件事一定会笑。她总是说，"
      "气象站的温度计挂错了墙。"
    ),
    (
      "好的地图省略的东西比画出来的多得多。在山里走路的人想知道小路、泉水和陡坡在哪里，"
      "而开车的人只需要公路。因此，制作地图的艺术就是选择特定的读者不需要什么。"
      "古老的地图清楚地说明了这一点。水手们仔细地画出海岸，却让内陆空着，"
      "只留下从海上能看见的教堂尖塔。收税的人画出了田地，却忘记了山丘。"
      "今天计算机可以保存一切，但是屏幕上显示什么仍然需要有人决定。"
    ),
  ),
  "de": (
    (
      "Die Fähre verlässt den Hafen im Winter zweimal und im Sommer fünfmal am Tag. Wer "
      "ein Fahrrad mitbringt, sollte eine halbe Stunde früher kommen, denn das untere "
      "Deck ist schnell voll. Die Überfahrt dauert bei ruhiger See etwa fünfzig "
      "Minuten.\n\nAuf der Insel gibt es einen kleinen Laden, der Brot, Obst und "
      "Zeitungen verkauft. Die meisten Besucher gehen zuerst zum Leuchtturm, der eine "
      "Stunde vom Anleger entfernt ist. Das Haus des Wärters ist heute ein Museum, und "
      "der Blick aus dem Garten lohnt den Weg. Das letzte Boot wartet auf niemanden, und "
      "deshalb sind alle pünktlich."
    ),
    (
      "Brot braucht nur vier Zutaten, aber es braucht auch Geduld. Man mischt das Mehl "
      "mit Wasser und lässt es eine Stunde ruhen, bevor man Salz und Hefe zugibt. In "
      "dieser Pause nimmt das Mehl das Wasser auf, und der Teig lässt sich besser "
      "verarbeiten.\n\nStatt zu kneten, faltet man den Teig alle dreißig Minuten. Nach "
      "dem vierten Mal sollte er glatt sein und die Form halten. Über Nacht steht er an "
      "einem kühlen Ort. Am Morgen heizt man den Ofen mit einem schweren Topf vor und "
      "backt das Brot die erste Hälfte der Zeit unter dem Deckel. Die Kruste knistert "
      "beim Abkühlen."
    ),
    (
      "Als die Eisenbahn 1872 das Tal erreichte, veränderte sich die Stadt in wenigen "
      "Jahren. Bauern, die ihre Milch bisher an die Nachbarn verkauft hatten, schickten "
      "sie nun vor dem Frühstück in die Großstadt. Neben dem Bahnhof entstand eine "
      "Fabrik für Landmaschinen, und die Arbeiter kamen aus weit entfernten "
      "Dörfern.\n\nNicht alle freuten sich über die neue Strecke. Die Wirte der "
      "Poststationen verloren ihr Geschäft, und einer von ihnen schrieb zehn Jahre lang "
      "wütende Briefe an die Zeitung. Sein Haus steht noch, doch heute ist es eine "
      "Bücherei. Dort liegen die Briefe in einem Schaukasten neben dem letzten Fahrplan "
      "der Postkutsche."
    ),
    (
      "Der Rat hat beschlossen, die alte Brücke zu reparieren und nicht zu ersetzen. Im "
      "Frühling haben Ingenieure jeden Stein geprüft und festgestellt, dass die Bögen "
      "fest sind, auch wenn die Straße darauf abgesunken ist. Die Arbeiten beginnen im "
      "April und sollen vor dem Herbst fertig sein.\n\nIn dieser Zeit fahren die Autos "
      "über die Brücke an der Mühle, während Fußgänger einen Weg aus Holz neben der "
      "Baustelle benutzen können. Die Geschäfte in der unteren Straße bleiben offen. Am "
      "nächsten Donnerstag findet eine Versammlung statt, bei der die Pläne gezeigt und "
      "Fragen beantwortet werden."
    ),
  ),
  "fr": (
    (
      "Le bac quitte le port deux fois par jour en hiver et cinq fois en été. Les "
      "passagers qui apportent un vélo doivent arriver une demi-heure plus tôt, car le "
      "pont inférieur se remplit vite. La traversée dure environ cinquante minutes quand "
      "la mer est calme.\n\nSur l'île, il y a un seul petit magasin qui vend du pain, "
      "des fruits et des journaux. La plupart des visiteurs vont d'abord au phare, qui "
      "se trouve à une heure du quai par les falaises. La maison du gardien est devenue "
      "un musée, et la vue depuis son jardin mérite la montée. Le dernier bateau "
      "n'attend personne, et chacun veille à être à l'heure."
    ),
    (
      "Le pain ne demande que quatre ingrédients, mais il demande aussi de la patience. "
      "Mélangez la farine avec de l'eau et laissez reposer une heure avant d'ajouter le "
      "sel et la levure. Pendant cette pause, la farine absorbe l'eau et la pâte devient "
      "plus facile à travailler.\n\nPliez la pâte toutes les trente minutes au lieu de "
      "la pétrir. Après le quatrième pli, elle doit être lisse et garder sa forme. "
      "Laissez-la dans un endroit frais pendant la nuit. Le matin, chauffez le four avec "
      "une cocotte lourde et faites cuire le pain sous le couvercle pendant la première "
      "moitié du temps. La croûte craque en refroidissant."
    ),
    (
      "Quand le chemin de fer atteignit la vallée en 1872, la ville changea en quelques "
      "années. Les paysans qui vendaient leur lait aux voisins l'envoyaient maintenant à "
      "la grande ville avant le petit déjeuner. Une usine de machines agricoles ouvrit à "
      "côté de la gare, et les ouvriers venaient de villages très éloignés.\n\nTout le "
      "monde n'était pas content de la nouvelle ligne. Les patrons des auberges "
      "perdirent leur commerce, et l'un d'eux écrivit des lettres furieuses au journal "
      "pendant dix ans. Son auberge existe encore, mais c'est aujourd'hui une "
      "bibliothèque. Les lettres y sont gardées dans une vitrine avec le dernier horaire "
      "de la diligence."
    ),
    (
      "Le conseil a décidé de réparer le vieux pont plutôt que de le remplacer. Des "
      "ingénieurs ont examiné chaque pierre au printemps et ont constaté que les arches "
      "sont solides, bien que la route se soit affaissée. Les travaux commenceront en "
      "avril et devraient être terminés avant les pluies de l'automne.\n\nPendant ce "
      "temps, les voitures passeront par le pont du moulin, tandis que les piétons "
      "pourront traverser sur un chemin en bois à côté du chantier. Les magasins de la "
      "rue basse resteront ouverts. Une réunion est prévue jeudi prochain, où les plans "
      "seront montrés et où les ingénieurs répondront aux questions."
    ),
  ),
}
LOREM = (
  "Lorem ipsum dolor sit amet, consectetur adipiscing elit, sed do eiusmod tempor incididunt "
  "ut labore et dolore magna aliqua. Ut enim ad minim veniam, quis nostrud exercitation "
  "ullamco laboris nisi ut aliquip ex ea commodo consequat. Duis aute irure dolor in "
  "reprehenderit in voluptate velit esse cillum dolore eu fugiat nulla pariatur. Excepteur "
  "sint occaecat cupidatat non proident, sunt in culpa qui officia deserunt mollit anim id est "
  "laborum."
)
